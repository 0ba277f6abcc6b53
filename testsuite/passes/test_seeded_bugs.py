"""Defects put into the rewriter: each is caught, by the gate that is there for it.

A gate that passes everything would pass the rest of this suite too; these are its own tests.
"""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, failures, plan, verdicts
from torch import fx

from tokopt.ir.dialect import OPS
from tokopt.ir.errors import InternalError
from tokopt.passes import literals, reading, stage
from tokopt.passes.cut import Cut
from tokopt.passes.workspace import Workspace

aten = torch.ops.aten
GATHER = OPS["gather"].overload
ONE = "decoder:2 fastv 8"


def failed(name: str, text: str) -> set[str]:
    """Return the gates that a family under a plan does not pass."""
    family = analysed(name)
    found = verdicts(checked(family, plan(text)), [family.named(family.sample.inputs)])
    return {verdict.gate for verdict in found if not verdict.passed}


@pytest.fixture(autouse=True)
def _sound() -> None:
    """Without a defect nothing fails (so what fails below fails for the defect)."""
    family = analysed("llava")
    if not hasattr(_sound, "seen"):
        named = family.named(family.sample.inputs)
        assert not failures(checked(family, plan(ONE)), [named])
        _sound.seen = True  # type: ignore[attr-defined]


def replace_gathers(monkeypatch: pytest.MonkeyPatch, defect, which) -> list[str]:  # type: ignore[no-untyped-def]
    """Let ``defect(work, call's arguments)`` stand for the gathers that ``which`` picks."""
    original, hit = Cut._gather_at, []

    def gather_at(self: Cut, operand: fx.Node, pads: object) -> fx.Node:
        if operand is self.value or not which(self, operand):
            return original(self, operand, pads)
        call = Workspace.call

        def patched(work: Workspace, target: object, *args: object, **kwargs: object) -> fx.Node:
            if target is not GATHER:
                return call(work, target, *args, **kwargs)
            hit.append(operand.name)
            return defect(work, call, *args)

        with monkeypatch.context() as inner:
            inner.setattr(Workspace, "call", patched)
            return original(self, operand, pads)

    monkeypatch.setattr(Cut, "_gather_at", gather_at)
    return hit


def first_only():  # type: ignore[no-untyped-def]
    """Pick the first crossing value, whichever it is."""
    seen: set[str] = set()

    def pick(cut: Cut, operand: fx.Node) -> bool:
        if not seen:
            seen.add(operand.name)
        return operand.name in seen

    return pick


def is_mask(cut: Cut, operand: fx.Node) -> bool:
    sizes = operand.meta["val"].shape
    return len(sizes) == 4 and sizes[-1] == sizes[-2]


def is_rotary(cut: Cut, operand: fx.Node) -> bool:
    return operand.meta["val"].is_floating_point()


def truncated(work: Workspace, call, x, index, dim, lead):  # type: ignore[no-untyped-def]
    """The first K rows instead of those of the index."""
    return call(work, aten.slice.Tensor, x, dim, 0, index.meta["val"].shape[-1])


def wrong_index(work: Workspace, call, x, index, dim, lead):  # type: ignore[no-untyped-def]
    """Every row goes to its neighbour's place."""
    rolled = call(work, aten.roll.default, index, [1], [-1])
    return call(work, GATHER, x, rolled, dim, lead)


def test_a_wrong_index_on_one_crossing_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    hit = replace_gathers(monkeypatch, wrong_index, first_only())
    assert {"identity", "oracle"} <= failed("llava", ONE)
    assert len(set(hit)) == 1


def test_a_mask_that_is_gathered_in_one_dim_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewriter's own shape check speaks first, and names the attention."""

    def untouched(work, call, x, index, dim, lead):  # type: ignore[no-untyped-def]
        return x if dim == 2 else call(work, GATHER, x, index, dim, lead)

    hit = replace_gathers(monkeypatch, untouched, is_mask)
    with pytest.raises(InternalError, match="does not fit"):
        failed("llava", ONE)
    assert hit


@pytest.mark.parametrize("missed", [2, 3])
def test_a_mask_that_is_truncated_in_one_dim(monkeypatch: pytest.MonkeyPatch, missed: int) -> None:
    def one(work, call, x, index, dim, lead):  # type: ignore[no-untyped-def]
        if dim == missed:
            return truncated(work, call, x, index, dim, lead)
        return call(work, GATHER, x, index, dim, lead)

    hit = replace_gathers(monkeypatch, one, is_mask)
    assert "oracle" in failed("llava", ONE)
    assert hit


def test_rotary_tables_that_are_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    hit = replace_gathers(monkeypatch, truncated, is_rotary)
    assert failed("qwen", "vision:3 random 48") == {"oracle"}
    assert len(set(hit)) >= 2


def test_positions_that_are_renumbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first K positions are those that renumbering gives; cosine and sine of them follow."""
    hit = replace_gathers(monkeypatch, truncated, is_rotary)
    assert failed("llava", ONE) == {"oracle"}
    assert len(set(hit)) == 4  # two layers, cosine and sine each


def test_a_size_that_is_one_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    original = literals.new_size
    monkeypatch.setattr(
        literals, "new_size", lambda place, work, kept: work.plus(original(place, work, kept), 1)
    )
    with pytest.raises(InternalError, match="does not fit"):
        failed("llava", ONE)


def test_a_range_that_starts_one_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's mean then leaves one patch out: no shape tells."""
    original = literals._range

    def late(node, name, work, tokens, rows, kept):  # type: ignore[no-untyped-def]
        original(node, name, work, tokens, rows, kept)
        if name == "aten::slice" and node.args[2] == 5:
            node.update_arg(2, 6)
            hit.append(node.name)

    hit: list[str] = []
    monkeypatch.setattr(literals, "_range", late)
    assert {"identity", "oracle"} <= failed("dino", "vision:2 random 18")
    assert hit


def test_the_first_item_s_rows_for_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace tells the truth, and every shape fits: only the values differ."""

    def of_first(work, value, tokens, lead, index, kept, rows):  # type: ignore[no-untyped-def]
        with work.graph.inserting_before(index.next):
            one = work.call(aten.slice.Tensor, index, 0, 0, 1)
            shared = work.call(aten.expand.default, one, list(index.meta["val"].shape))
        return Cut(work, value, tokens, lead, shared, kept, rows)

    monkeypatch.setattr(stage, "Cut", of_first)
    assert failed("llava", ONE) == {"oracle"}


def test_the_neighbouring_layer_s_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    original = reading._layers

    def earlier(work, operands, stack, depths, *rest):  # type: ignore[no-untyped-def]
        return original(work, operands, stack, depths[:-1], *rest)

    monkeypatch.setattr(reading, "_layers", earlier)
    assert "selection" in failed("llava", ONE)


def test_scores_that_are_read_with_the_wrong_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    original = reading.Taps

    def taps(**given):  # type: ignore[no-untyped-def]
        return original(**{**given, "relay": 1})

    monkeypatch.setattr(reading, "Taps", taps)
    assert "selection" in failed("handvit", "vision:2 vtc_cls 18")
