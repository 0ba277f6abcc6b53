"""Objective: how far a program's answer is from the original's; 0 where it is the same.

For a model with a decoder, at the last prompt token of every item; for a tower alone, of its
outputs that have no token axis, else of the mean over the rows that are left.

    kl       KL(softmax original ‖ softmax other) of the first output, in nats
    cosine   1 - cos(original, other) of the final hidden state: the stream behind the last layer
             (of the first output where the graph shows none)

Both are means over items, in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.axis import locate
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.given import is_float
from tokopt.passes.observe import Observation
from tokopt.passes.search.replay import Replay

Measure = Literal["kl", "cosine"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
DEFAULT: Measure = "cosine"
"""Ranks plans most like accuracy does: see the search's benchmark."""


@dataclass(frozen=True)
class Answer:
    """What items of a batch answer: ``scores`` ``[B, V]`` of the output, ``state`` ``[B, C]``."""

    scores: Tensor
    state: Tensor


class Objective:
    """The original's answers on the batches of a replay, and the distance of others from them.

    ``seen`` are observations of the same batches: they tell where padded prompts end.
    """

    def __init__(self, facts: Facts, replay: Replay, seen: list[Observation]) -> None:
        self.facts, self.replay = facts, replay
        self.decoder = facts.consumer if facts.consumer.role.startswith("decoder") else None
        self._output, self._number = _first_output(facts)
        self._state = _state(facts, self.decoder)
        self._behind = [self._rows_behind(one) for one in seen]
        self.reference = self.answers(facts.exported)

    def answers(self, exported: ExportedProgram) -> list[Answer]:
        """Return a program's answers, batch by batch."""
        (output,) = exported.graph.find_nodes(op="output")
        names = [output.args[0][self._number].name]
        if self._state is not None:
            names.append(self._state.name)
        found = self.replay.run(exported, names)
        return [
            self._answer([values[name] for name in names], behind)
            for values, behind in zip(found, self._behind, strict=True)
        ]

    def distance(self, exported: ExportedProgram) -> dict[str, float]:
        """Return how far a program's answers are from the original's, by every measure."""
        kl: list[Tensor] = []
        cosine: list[Tensor] = []
        for wanted, got in zip(self.reference, self.answers(exported), strict=True):
            kl.append(divergence(wanted.scores, got.scores))
            cosine.append(1.0 - torch.cosine_similarity(wanted.state, got.state, dim=-1))
        return {"kl": float(torch.cat(kl).mean()), "cosine": float(torch.cat(cosine).mean())}

    def _rows_behind(self, seen: Observation) -> Tensor | None:
        """Return how many rows (padding) stand behind each item's last token; None: none do."""
        if self.decoder is None:
            return None
        layers = seen.stacks[self.decoder.role].layers
        if not layers or layers[0].last is None:
            return None
        return layers[0].key.shape[2] - 1 - layers[0].last

    def _answer(self, values: list[Tensor], behind: Tensor | None) -> Answer:
        scores = self._row(values[0], self._output, behind)
        state = self._row(values[1], self._state, behind) if self._state is not None else scores
        return Answer(scores, state)

    def _row(self, value: Tensor, node: fx.Node | None, behind: Tensor | None) -> Tensor:
        """Return the last token's row of a value, or the mean over rows of a tower's."""
        assert node is not None
        stack = self.facts.consumer
        dim = _row_dim(self.facts, node, stack)
        if dim is None:
            return value.flatten(1).float()
        rows = value.movedim(dim, 1) if value.dim() > 2 else value.movedim(dim, 0).unsqueeze(0)
        rows = rows.flatten(2).float()
        if self.decoder is None:
            there = (rows != 0).any(-1, keepdim=True)  # dropped rows of an output are 0
            return (rows * there).sum(1) / there.sum(1).clamp_min(1)
        if behind is None:
            return rows[:, -1]
        last = (rows.shape[1] - 1 - behind).reshape(-1, 1, 1)
        return rows.gather(1, last.expand(-1, 1, rows.shape[2]))[:, 0]


def divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """Return KL(softmax wanted ‖ softmax got) of each row, ``[B]``."""
    p, q = torch.log_softmax(wanted, -1), torch.log_softmax(got, -1)
    return (p.exp() * (p - q)).sum(-1)


def _first_output(facts: Facts) -> tuple[fx.Node, int]:
    """Return the output that is compared, and which of the program's it is."""
    (output,) = facts.exported.graph.find_nodes(op="output")
    found = [
        (node, number)
        for number, node in enumerate(output.args[0])
        if isinstance(node, fx.Node) and node in facts.dims.axes and is_float(node)
    ]
    if not found:
        raise UnsupportedError("the program has no floating-point output to compare")
    if facts.consumer.role.startswith("decoder"):
        return found[0]
    pooled = [each for each in found if _row_dim(facts, each[0], facts.consumer) is None]
    return (pooled or found)[0]


def _state(facts: Facts, decoder: TokenStack | None) -> fx.Node | None:
    """Return the stream behind the decoder's last layer, where one of its dims holds the rows."""
    if decoder is None or decoder.stack.cross:
        return None
    end = decoder.stack.end
    return end if _row_dim(facts, end, decoder) is not None else None


def _row_dim(facts: Facts, node: fx.Node, stack: TokenStack) -> int | None:
    """Return the dim of a value that holds the rows of a stack's stream, alone."""
    axes = [axis.root for axis in facts.dims.axes[node]]
    wholes = [i for i, axis in enumerate(axes) if axis is stack.rows.root]
    if wholes:
        return wholes[0]
    parts = [i for i, axis in enumerate(axes) if locate(axis, stack.tokens) is not None]
    if len(parts) == 1:
        return parts[0]
    return None
