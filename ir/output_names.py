"""Names for the outputs of a program: the caller's, or what its output structure calls them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch.export import ExportedProgram
from torch.utils import _pytree

from tokopt.ir.errors import InputError


def structural_names(
    exported: ExportedProgram, places: Sequence[int], taken: Sequence[str]
) -> list[str]:
    """Name the outputs at ``places``: ``logits``, ``cache.0.1``; ``output_0`` without a key.

    A name that an input has (``taken``) gets ``output_`` before it.
    """
    spec = exported.call_spec.out_spec
    if spec is None:
        return [f"output_{place}" for place in places]
    numbered = _pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = [path for path, _ in _pytree.tree_flatten_with_path(numbered)[0]]
    names = [".".join(re.findall(r"\w+", _pytree.keystr(paths[place]))) for place in places]
    if names == [""]:
        return ["output"]
    return [f"output_{n}" if n[:1].isdigit() or n in taken else n for n in names]


def checked_names(names: Sequence[str], count: int, taken: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` if they are ``count`` distinct names that no input has.

    Raises ``InputError`` otherwise.
    """
    if len(names) != count:
        raise InputError(
            f"{len(names)} output names were given for {count} tensor outputs",
            expected=f"{count} names",
        )
    for name in names:
        if not name or list(names).count(name) > 1 or name in taken:
            raise InputError(
                f"the output name {name!r} is empty, used twice or an input's name",
                expected="distinct names that no input has",
            )
    return tuple(names)
