"""Rows of a tower that are reused: every gate passes, and a rewrite that is wrong does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, plan
from torch import fx

from tokopt.ir.errors import InputError, TokoptError, UnsupportedError
from tokopt.ir.memory import with_memory
from tokopt.passes import reusing
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import report_work
from tokopt.passes.macs import count_macs
from tokopt.passes.methods.registry import find_method
from tokopt.passes.validate import validate

BESIDE = "vision:1 stc_cacher share=0.4 every=3, decoder:0 stc 9, decoder:1 vla_pruner 5"


def failed(name: str, text: str) -> set[str]:
    family = analysed(name)
    found = list(validate(checked(family, plan(text)), every_input(family)[:1]))
    assert {"structure", "identity", "selection", "oracle"} <= {v.gate for v in found}
    assert sum(v.compared.startswith("what the reference program keeps") for v in found) == 1
    return {verdict.gate for verdict in found if not verdict.passed}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava", BESIDE),
        ("dino_short", "vision:0 stc_cacher"),
        ("flat", "vision:0 stc_cacher share=0.5"),
    ],
)
def test_reused_rows_pass_every_gate(name: str, text: str) -> None:
    assert failed(name, text) == set()


def test_the_update_computes_few_rows_and_the_work_is_the_mean_over_the_calls() -> None:
    """The published count: keys of all N rows; of k rows the rest, which read all N."""
    family, every = analysed("dino_short"), 4
    facts, inputs = family.facts, every_input(family)[0]
    done = checked(family, plan(f"vision:0 stc_cacher share=0.25 every={every}")).applied
    stack = family.stack("vision")
    layer = stack.stack.layers[0]
    count, width = layer.entry.meta["val"].shape[-2:]
    heads = done.reference.memory[1].shape[1] if done.reference else 0
    assert isinstance(stack.count, int) and heads
    few = count - stack.count + int(0.25 * stack.count)
    products = (n for n in facts.exported.graph.nodes if "linear" in str(n.target))
    hidden = max(n.meta["val"].shape[-1] for n in products)  # of the feed-forward part: the widest

    def macs(rows: int) -> int:
        return count * width**2 + rows * (3 * width**2 + 2 * count * width + 2 * width * hidden)

    before = count_macs(facts.exported, inputs)
    after = count_macs(done.exported, with_memory(done.memory, inputs))
    layers = len(stack.stack.layers)
    assert before - after == layers * (macs(count) - macs(few)) > 0.4 * before
    work = report_work(facts.exported, done, inputs)
    assert work.left == 2 * (before + (every - 1) * after) // every
    assert 0 < work.reuse.flops < 0.1 * work.saved and work.selector == ()


def swapped(first: str, second: str) -> Callable[..., object]:
    """The update with two states of every layer in each other's place."""
    update = reusing._Layer.update

    def wrong(self: Any, held: dict[str, fx.Node]) -> object:
        names = self.layer.state(first), self.layer.state(second)
        return update(self, {**held, names[0]: held[names[1]], names[1]: held[names[0]]})

    return wrong


def seeded_faults() -> dict[str, tuple[str, str, object]]:
    """By fault: the gate that must fail, and what is put in the place of which method."""
    choose, put_back, attend, update = (
        getattr(reusing._Layer, name) for name in ("_choose", "_put_back", "_attend", "update")
    )

    def by_another_layer(self: Any, then: fx.Node) -> object:
        other = self.work.graph.find_nodes(op="placeholder")
        keys = [n for n in other if n.name.startswith("reuse_") and n.name.endswith("_key")]
        return choose(self, keys[0])

    def in_other_places(self: Any, output: fx.Node, reference: fx.Node, rows: fx.Node) -> None:
        with self.work.graph.inserting_before(output):
            turned = self.work.call(torch.ops.aten.flip.default, rows, [1])
        put_back(self, output, reference, turned)

    def of_the_reference(self: Any, key: fx.Node, mask: object, held: Any, rows: fx.Node) -> None:
        attend(self, held[self.layer.state("key")], mask, held, rows)

    def of_another_layer(self: Any, held: dict[str, fx.Node]) -> object:
        return update(self, {**held, self.layer.added[1]: held["reuse_0_added_1"]})

    return {
        "keys for values": ("oracle", "update", swapped("key", "value")),
        "what another layer added": ("oracle", "update", of_another_layer),
        "another layer's keys decide": ("selection", "_choose", by_another_layer),
        "rows in other places": ("identity", "_put_back", in_other_places),
        "keys of the reference": ("oracle", "_attend", of_the_reference),
    }


@pytest.mark.parametrize("fault", seeded_faults())
def test_a_wrong_rewrite_fails_a_gate(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, name, instead = seeded_faults()[fault]
    monkeypatch.setattr(reusing._Layer, name, instead)
    assert gate in failed("dino_short", "vision:0 stc_cacher")


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("llava", "decoder:1 stc_cacher", UnsupportedError, "cannot reuse rows of decoder"),
        ("llava", "vision:0 stc_cacher, vision:1 stc_cacher", InputError, "asked for twice"),
        ("llava", "vision:0 stc_cacher, vision:2 stride 9", UnsupportedError, "keeps every row"),
        ("llava", "vision:end stc_cacher", UnsupportedError, "no layer lies behind vision:end"),
        ("llava", "vision:0 stc_cacher, decoder:1 paint", UnsupportedError, "few of its rows"),
        ("llava_dynamic", "vision:0 stc_cacher", UnsupportedError, "their number is free"),
        ("handvit_short", "vision:0 stc_cacher", UnsupportedError, "products written out"),
        ("qwen_short", "vision:0 stc_cacher", UnsupportedError, "attends in windows"),
    ],
)
def test_what_cannot_be_reused_is_refused(
    name: str, text: str, kind: type[TokoptError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        apply_plan(analysed(name).facts.exported, plan(text), find_method)
