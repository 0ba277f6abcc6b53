"""Objective: how far a program's answer is from the original's; 0 where it is the same.

For a model with a decoder, at the last prompt token of every item, and where prompts end in an
answer at every token that one of the answer follows, in the mean; for a tower alone, of its
outputs that have no token axis, else of the mean over the rows that are left.

    kl       KL(softmax original ‖ softmax other) of the first output, in nats
    cosine   1 - cos(original, other) of the final hidden state: the stream behind the last layer
             (of the first output where the graph shows none)

Both are means over items, in fp32.  Where a search chooses how caches are stored, ``kl`` is the
mean over one token more: what decode makes of the cache behind the original's own next token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.facts import Facts, TokenStack
from tokopt.passes.answer import (
    answer_rows,
    check_answered,
    first_output,
    row_dim,
    rows_behind,
)
from tokopt.passes.observe import Observation
from tokopt.passes.search.race import Distances, means
from tokopt.passes.search.replay import Replay
from tokopt.passes.search.stored import Cache, StoredChoices

Measure = Literal["kl", "cosine"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
DEFAULT: Measure = "kl"
"""A hair nearer to the order by accuracy than ``cosine`` (benchmarks/results/objective.md)."""


@dataclass(frozen=True)
class Answer:
    """What items answer: ``scores`` ``[B, T, V]`` of the output, ``state`` ``[B, T, C]``.

    T rows are judged, the last first; those that an item has are ``there``, bool ``[B, T]``.
    ``behind`` ``[B, V]``: decode's scores, where a step of it is judged too.
    """

    scores: Tensor
    state: Tensor
    there: Tensor
    behind: Tensor | None = None


class Objective:
    """The original's answers on the batches of a replay, and the distance of others from them.

    ``seen`` are observations of the same batches: they tell where padded prompts end.
    ``answered``: of each batch, how many tokens at each prompt's end are an answer, int64 ``[B]``.
    ``stored``: how caches may be stored, where that is judged too.
    """

    def __init__(
        self,
        facts: Facts,
        replay: Replay,
        seen: list[Observation],
        answered: Sequence[Tensor | None] = (),
        stored: StoredChoices | None = None,
    ) -> None:
        self.stored = stored
        self.facts, self.replay = facts, replay
        self.decoder = facts.consumer if facts.consumer.role.startswith("decoder") else None
        self._output, self._number = first_output(facts)
        self._state = _state(facts, self.decoder)
        self._behind = [rows_behind(facts, one) for one in seen]
        self._answered = list(answered) or [None] * len(seen)
        judged = [self._output, *([] if self._state is None else [self._state])]
        for one, lengths in zip(seen, self._answered, strict=True):
            if lengths is not None:
                check_answered(facts, one, lengths, judged)
        self.reference = list[Answer]()
        self.reference.extend(self.answers(facts.exported))

    def answers(
        self, exported: ExportedProgram, first: int = 0, cache: Cache = ()
    ) -> Iterator[Answer]:
        """Yield a program's answers, batch by batch, from batch number ``first`` on."""
        (output,) = exported.graph.find_nodes(op="output")
        taken = [] if self.stored is None else [output.args[0][n].name for n in self.stored.taken]
        names = [output.args[0][self._number].name]
        if self._state is not None:
            names.append(self._state.name)
        found = self.replay.each(exported, [*names, *taken], first)
        rows = zip(self._behind, self._answered, strict=True)
        for number, (values, (behind, lengths)) in enumerate(
            zip(found, list(rows)[first:], strict=True), first
        ):
            answer = self._answer([values[name] for name in names], behind, lengths)
            if self.stored is not None:
                own = self.reference[number] if number < len(self.reference) else answer
                token = own.scores[:, 0].argmax(-1)
                handed = [values[name] for name in taken]
                later = self.stored.logits(number, token, handed, cache)
                answer = replace(answer, behind=later)
            yield answer

    def distance(self, exported: ExportedProgram, without: int = 0) -> dict[str, float]:
        """Return how far a program's answers are from the original's, by every measure.

        The first batches, as many as ``without``, are left out.
        """
        return means(dict(self.distances(exported, without)))

    def distances(
        self, exported: ExportedProgram, without: int = 0, cache: Cache = ()
    ) -> Iterator[tuple[int, Distances]]:
        """Yield the same of every item, batch by batch as they are run, with the batch's number.

        ``cache``: how decode's step finds its cache stored.
        """
        for number, got in enumerate(self.answers(exported, without, cache), without):
            wanted = self.reference[number]
            cosine = 1.0 - torch.cosine_similarity(wanted.state, got.state, dim=-1)
            rows = {"kl": divergence(wanted.scores, got.scores), "cosine": cosine}
            there, count = wanted.there, wanted.there.sum(1)
            far = {name: (one * there).sum(1) / count for name, one in rows.items()}
            if wanted.behind is not None and got.behind is not None:
                later = divergence(wanted.behind.float(), got.behind.float())
                far["kl"] = (far["kl"] * count + later) / (count + 1)
            yield number, far

    def _answer(
        self, values: list[Tensor], behind: Tensor | None, answered: Tensor | None
    ) -> Answer:
        scores = answer_rows(self.facts, values[0], self._output, behind, answered)
        lengths = torch.zeros(len(scores), dtype=torch.int64) if answered is None else answered
        there = torch.arange(scores.shape[1]) <= lengths.unsqueeze(1)
        if self._state is None:
            return Answer(scores, scores, there)
        state = answer_rows(self.facts, values[1], self._state, behind, answered)
        return Answer(scores, state, there)


def divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """Return KL(softmax wanted ‖ softmax got) of each row, the last dim gone."""
    p, q = torch.log_softmax(wanted, -1), torch.log_softmax(got, -1)
    return (p.exp() * (p - q)).sum(-1)


def _state(facts: Facts, decoder: TokenStack | None) -> fx.Node | None:
    """Return the stream behind the decoder's last layer, where one of its dims holds the rows."""
    if decoder is None or decoder.stack.cross:
        return None
    end = decoder.stack.end
    return end if row_dim(facts, end, decoder) is not None else None
