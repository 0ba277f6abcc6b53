"""A replay gives what a whole run gives, and runs only what differs."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.families import plan
from testsuite.passes.search.searched import batches, llava, replay

from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.search import replay as module
from tokopt.passes.validate import run_program

PLANS = ("vision:end vtc_cls 12", "decoder:2 fastv 4", "vision:1 random 20, decoder:3 stride 3")


@pytest.mark.parametrize("room", [1 << 30, 1])
def test_the_outputs_are_those_of_a_whole_run_however_little_is_remembered(room: int) -> None:
    whole = replay(room)
    for text in PLANS:
        exported = apply_plan(llava().facts.exported, plan(text), find_method).exported
        (output,) = exported.graph.find_nodes(op="output")
        name = output.args[0][0].name
        for values, inputs in zip(whole.run(exported, [name]), batches(), strict=True):
            torch.testing.assert_close(values[name], run_program(exported, inputs)[0])


def test_what_lies_before_the_first_stage_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second plan that cuts at a place computes nothing of the original again."""
    ran: list[str] = []
    run = module._run

    def counted(exported, needed, env, keep):  # type: ignore[no-untyped-def]
        ran.extend(node.name for node in needed if exported is llava().facts.exported)
        run(exported, needed, env, keep)

    monkeypatch.setattr(module, "_run", counted)
    whole, counts = replay(), []
    for keep in (9, 6):
        chosen = plan(f"decoder:2 fastv {keep}")
        exported = apply_plan(llava().facts.exported, chosen, find_method).exported
        (output,) = exported.graph.find_nodes(op="output")
        ran.clear()
        whole.run(exported, [output.args[0][0].name])
        counts.append(len(ran))
    assert counts[0] > 100 and counts[1] == 0


def test_a_rewritten_operand_makes_all_behind_it_change() -> None:
    exported = apply_plan(llava().facts.exported, plan("decoder:2 stride 4"), find_method).exported
    changed = {node.name for node in replay()._changed(exported.graph)}
    entry = llava().facts.consumer.stack.layers[2]
    assert entry.entry.name not in changed and entry.join.name in changed
    assert llava().facts.consumer.stack.end.name in changed
