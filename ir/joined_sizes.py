"""Joined sizes: what the free sizes of programs in front are in terms of the last one's.

Every program has symbols of its own, named alike by chance.  A link makes the sizes of an output
and of an input equal, which gives the output's symbols a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.lengths import length_of
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.trace import fake_mode_of

Size = int | torch.SymInt


class JoinedSizes:
    """The meaning of every program's symbols; ``mode`` is the fake mode of the last program.

    Raises ``UnsupportedError`` where a link contradicts it or leaves one open.
    """

    def __init__(
        self, graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
    ) -> None:
        self.mode, self.main = fake_mode_of(graphs[main].graph), main
        self._known: dict[str, dict[sympy.Expr, Size]] = {name: {} for name in graphs}
        for name in reversed(list(graphs)):
            for link in links:
                if link.source == name:
                    self._learn(graphs, link)

    def record(self, node: fx.Node, program: str) -> None:
        """Give a copied placeholder of ``program`` its value in terms of the last program."""
        value = node.meta.get("val")
        if program == self.main or not isinstance(value, Tensor):
            return
        sizes = [self._meaning(program, size) for size in value.shape]
        with self.mode:
            if all(isinstance(size, int) for size in value.shape):
                made = torch.empty_strided(
                    sizes, value.stride(), dtype=value.dtype, device=value.device
                )
            else:
                made = torch.empty(sizes, dtype=value.dtype, device=value.device)
        node.meta["val"] = made

    def _learn(self, graphs: Mapping[str, ExportedProgram], link: Link) -> None:
        given = outputs_by_name(graphs[link.source])[link.output].meta["val"]
        (taker,) = (
            n
            for n in graphs[link.target].graph.find_nodes(op="placeholder")
            if n.name == link.input
        )
        known = self._known[link.source]
        for size, other in zip(given.shape, taker.meta["val"].shape, strict=True):
            meaning, length = self._meaning(link.target, other), length_of(size)
            if isinstance(length, sympy.Symbol):
                before = known.setdefault(length, meaning)
            elif isinstance(length, int):
                before = length
            else:
                continue
            if str(before) != str(meaning):
                raise UnsupportedError(
                    f"the link {link} makes a size of {before} one of {meaning}",
                    expected="sizes that are free in both programs, or in none",
                    hint=f"export {link.source!r} and {link.target!r} with the same free sizes",
                )

    def _meaning(self, program: str, size: Any) -> Size:
        length = length_of(size)
        if program == self.main or isinstance(length, int):
            return size if program == self.main else int(size)
        if length not in self._known[program]:
            raise UnsupportedError(
                f"a free size of program {program!r} ({length}) is none of {self.main!r}",
                expected="free sizes that the programs' links show to be one",
                hint=f"export {program!r} with this size constant",
            )
        return self._known[program][length]
