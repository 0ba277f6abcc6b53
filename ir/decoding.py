"""Decoding: how a program that follows the main one makes the next token, found from its graph.

A decode step concatenates each cache it is given with the rows of its own token, and gives back
the whole or the new rows.  Its token is the input that looks rows up in the table in which the main
program looks up its prompt; of what is left, what has the token's shape is the position, and what
has a number for each row of the longer cache is the mask.  Anything else is not guessed at: such a
program is run by whoever knows what it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.cache import Cache, find_caches
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.tensors import tensor_inputs

aten = torch.ops.aten


@dataclass(frozen=True)
class Decoding:
    """Names of ``program`` (decode) and of the main one's ``prompt`` and ``logits``.

    ``position`` is None where decode is not told it; ``places`` is how many positions have a row
    in a table, None where they are computed.  ``mask`` is 0 where a row of the longer cache is
    padding, which the main program is told by ``padding``, and its positions by ``positions``;
    each is None where there is none.
    """

    program: str
    prompt: str
    logits: str
    token: str
    position: str | None
    next_logits: str
    caches: tuple[Cache, ...]
    places: int | None = None
    mask: str | None = None
    padding: str | None = None
    positions: str | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """The inputs of the main program, but the prompt, that tell what decode is told."""
        return tuple(name for name in (self.padding, self.positions) if name is not None)


def find_decoding(
    graphs: Mapping[str, ExportedProgram],
    links: Sequence[Link],
    main: str,
    masks: Sequence[str] = (),
) -> Decoding | None:
    """Return how the one program that takes what ``main`` gives decodes; None where it does not.

    ``graphs`` are in normal form; ``masks`` are the inputs of ``main`` that may say which rows of a
    prompt are padding (``find_masks``).
    """
    following = {link.target for link in links if link.source == main}
    if len(following) != 1:
        return None
    (name,) = following
    graph, linked = graphs[name], [link.input for link in links if link.target == name]
    caches = find_caches(graph, linked)
    words, prompts = _lookups(graph), _lookups(graphs[main])
    own = {t.name: t.value for t in tensor_inputs(graph) if t.name not in linked}
    pairs = {
        (token, prompt)
        for token in own
        for prompt in prompts
        if any(_same(a, b) for a in words.get(token, []) for b in prompts[prompt])
    }
    handed = {link.output for link in links if link.source == main}
    first = [o for o in outputs_by_name(graphs[main]) if o not in handed]
    returned = {cache.output for cache in caches or ()}
    later = [o for o in outputs_by_name(graph) if o not in returned]
    if not caches or len(pairs) != 1 or len(first) != 1 or len(later) != 1:
        return None
    ((token, prompt),) = pairs
    rest = [one for one in own if one != token]
    places = [one for one in rest if _like(own[one], own[token])]
    told = [one for one in rest if one not in places and _masks(graph, own[one], caches)]
    known = len(places) + len(told) == len(rest) and len(places) < 2 and len(told) < 2
    if not known or own[token].ndim != 2 or len(masks) > 1:
        return None
    given = {t.name: t.value for t in tensor_inputs(graphs[main])}
    whole = [
        name
        for name, value in given.items()
        if places and name not in (prompt, *masks) and _long(value, own[places[0]], given[prompt])
    ]
    tables = [table.shape[0] for place in places for table in words.get(place, [])]
    return Decoding(
        name,
        prompt,
        first[0],
        token,
        next(iter(places), None),
        later[0],
        caches,
        min(tables, default=None),
        next(iter(told), None),
        masks[0] if masks else None,
        whole[0] if len(whole) == 1 else None,
    )


def _lookups(graph: ExportedProgram) -> dict[str, list[Tensor]]:
    """Return, by input, the stored tables in which its values are looked up."""
    signature = graph.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tables = {name: graph.state_dict.get(key) for name, key in stored.items()}
    inputs = {tensor.name for tensor in tensor_inputs(graph)}
    found: dict[str, list[Tensor]] = {}
    for node in graph.graph.nodes:
        if node.target is aten.embedding.default:
            table = tables.get(node.args[0].name)
            for name in inputs & _values_behind(node.args[1]):
                found.setdefault(name, []).extend([] if table is None else [table])
    return found


def _values_behind(node: fx.Node) -> set[str]:
    """Return the names of all tensors that a value is computed from; sizes are none."""
    seen, todo = set[str](), [node]
    while todo:
        one = todo.pop()
        if one.name not in seen and isinstance(one.meta.get("val"), Tensor):
            seen.add(one.name)
            todo += one.all_input_nodes
    return seen


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


def _like(value: Tensor, token: Tensor) -> bool:
    """Whether whole numbers have the token's shape, or that behind further axes."""
    tail = value.shape[value.ndim - token.ndim :]
    return value.dtype == token.dtype and value.ndim <= 3 and list(tail) == list(token.shape)


def _masks(graph: ExportedProgram, value: Tensor, caches: Sequence[Cache]) -> bool:
    """Whether whole numbers ``[B, rows]`` are as many as every cache has rows, and one more."""
    if value.ndim != 2 or value.is_floating_point():
        return False
    taken = {t.name: t.value for t in tensor_inputs(graph)}
    rows = [length_of(taken[cache.input].shape[cache.dim]) for cache in caches]
    return all(same_length(length_of(value.shape[1]), one + 1) for one in rows)


def _long(value: Tensor, place: Tensor, prompt: Tensor) -> bool:
    """Whether whole numbers are positions of a prompt as ``place`` is that of a token."""
    sizes = [length_of(size) for size in value.shape[-2:]]
    same = value.ndim == place.ndim and value.shape[: value.ndim - 2] == place.shape[:-2]
    wanted = [length_of(size) for size in prompt.shape]
    return value.dtype == place.dtype and same and all(map(same_length, sizes, wanted))
