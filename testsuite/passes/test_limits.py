"""Budgets of several numbers: how they are written, what meets them.  5 s."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import row_count
from tokopt.passes.budget_report import Work, report_work
from tokopt.passes.default_plan import default_fit
from tokopt.passes.devices import Device, find_device
from tokopt.passes.fit import Fitted
from tokopt.passes.limits import Limits, parse_limits
from tokopt.passes.methods.registry import find_method
from tokopt.passes.roofline import predict_seconds, products_seconds
from tokopt.passes.within import Meter, fit_within
from tokopt.targets.manifest import CachedLayer

SLOW = Device("slow", {torch.float32: 1e9}, 1e9)


def test_limits_are_written_as_shares_and_latency_in_seconds_too() -> None:
    assert parse_limits("tokens=0.2, flops=.5") == Limits(tokens=0.2, flops=0.5)
    assert parse_limits("latency=0.4") == Limits(latency=0.4)
    for text, seconds in (("20ms", 0.02), ("3s", 3.0), ("5us", 5e-6)):
        limits = parse_limits(f"kv=0.1,latency={text}")
        assert limits.kv == 0.1 and limits.latency == pytest.approx(seconds) and not limits.relative
    assert parse_limits("kv=0.1,tokens=0.3").rows == 0.3 and parse_limits("flops=0.3").rows == 1.0


@pytest.mark.parametrize(
    "text", ["speed=1", "tokens=", "tokens=2", "flops=0", "flops=-1", "flops=nan", "kv=1,kv=1", "="]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_limits(text)


@functools.cache
def meter(name: str, timed: bool = False) -> Meter:
    family = analysed(name)
    return Meter(family.facts, every_input(family)[0], SLOW if timed else None)


def fitted(name: str, budget: float, method: str | None = None) -> Fitted:
    return default_fit(analysed(name).facts, budget, method)


def work(name: str, plan: Plan) -> Work:
    facts = analysed(name).facts
    applied = apply_plan(facts.exported, plan, find_method)
    return report_work(facts.exported, applied, every_input(analysed(name))[0])


def within(name: str, limits: Limits, method: str | None = None) -> Fitted:
    return fit_within(
        meter(name, timed=True),
        limits,
        functools.partial(fitted, name, method=method),
        functools.partial(work, name),
    )


@pytest.mark.parametrize(("name", "method"), [("llava", "fastv"), ("dino", "flowcut")])
@pytest.mark.parametrize("kind", ["flops", "latency"])
def test_the_plan_meets_the_limit_and_one_token_more_does_not(
    name: str, method: str, kind: str
) -> None:
    limits = Limits(**{kind: 0.85})
    found, gauge = within(name, limits, method), meter(name, timed=True)
    limit = gauge.wanted(limits)[kind]
    assert gauge.counted(found.plan, work(name, found.plan))[kind] <= limit
    (last,) = found.plan.stages[-1:]
    for more in range(1, 40):
        group = dataclasses.replace(last, keep=last.keep + more)
        larger = dataclasses.replace(found.plan, stages=(*found.plan.stages[:-1], group))
        if gauge.counted(larger, work(name, larger))[kind] > limit:
            break
    assert more <= 3, "far from the limit"


def test_all_limits_hold_together_and_the_tightest_decides() -> None:
    loose = within("llava", Limits(tokens=0.9, flops=0.99, latency=0.99), "fastv")
    tight = within("llava", Limits(tokens=0.5, kv=0.45, flops=0.99), "fastv")
    assert float(loose.spent) > 0.8 and 0.4 < float(tight.spent) <= 0.45


def test_bytes_of_a_cache_whose_last_rows_wait_are_met_as_nearly_as_rows_allow() -> None:
    """By hand: of a layer's n rows min(n, window) take 16 bits, the others a quarter or an eighth.

    The reference tries every count.
    """
    facts = analysed("llava").facts
    of, layers = row_count(facts.consumer), len(facts.consumer.stack.layers)
    stored = [CachedLayer(n, "a", "a", 1.0, 4.0 + 4 * (n % 2), window=7) for n in range(layers)]
    gauge = dataclasses.replace(meter("llava"), stored=stored)

    def cost(keep: int) -> float:
        rows = [of] + [keep] * (layers - 1)  # fastv's published place in so few layers
        coded = (max(n - 7, 0) / (4 + 4 * (i % 2)) for i, n in enumerate(rows))
        return sum(min(n, 7) + more for n, more in zip(rows, coded, strict=True)) / (of * layers)

    place = functools.partial(fitted, "llava", method="fastv")
    for kv in (cost(5), cost(11), cost(11) + 1e-9, cost(of - 1)):
        found = fit_within(gauge, Limits(kv=kv), place, functools.partial(work, "llava")).plan
        assert found.stages[0].keep == max(n for n in range(1, of + 1) if cost(n) <= kv)
    with pytest.raises(BudgetError, match=r"meets kv=0\.05") as error:
        fit_within(gauge, Limits(kv=0.05), place, functools.partial(work, "llava"))
    assert f"at least kv={cost(1):.4g}, of the nearest" in str(error.value)


def test_what_no_plan_meets_names_the_nearest() -> None:
    with pytest.raises(BudgetError, match=r"meets flops=0\.01") as error:
        within("llava", Limits(flops=0.01), "fastv")
    assert "fastv at decoder:1 keeps 1" in str(error.value)


def test_a_model_without_decoder_has_no_cache_to_limit() -> None:
    with pytest.raises(UnsupportedError, match="cache of a decoder"):
        within("dino", Limits(kv=0.5))


def test_operations_of_a_plan_are_those_that_its_rewrite_counts() -> None:
    for name, text in (("llava", "fastv"), ("dino", "flowcut")):
        plan = fitted(name, 0.6, text).plan
        counted = work(name, plan)
        assert meter(name).predicted(plan)["flops"] == counted.left / counted.original


def test_a_roofline_is_what_takes_longer_of_operations_and_bytes() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).relu()

    graph = torch.export.export(Two(), (torch.ones(5, 3),)).graph
    operations, moved = 2 * 5 * 3 * 4, 4 * (5 * 3 + 3 * 4 + 5 * 4)
    for flops, bandwidth in ((10.0, 1e9), (1e9, 10.0)):
        device = Device("toy", {torch.float32: flops}, bandwidth)
        seconds = products_seconds(graph.nodes, lambda _: lambda n: n.meta["val"].shape, device)
        assert seconds == pytest.approx(max(operations / flops, moved / bandwidth))


def test_fewer_rows_are_predicted_to_take_less_on_every_device() -> None:
    gauge = meter("llava")
    plans = [Plan(()), *(fitted("llava", share, "fastv").plan for share in (0.8, 0.4))]
    for name in ("a100", "h100", "h200", "l4", "rtx4090"):
        device = find_device(name)
        seconds = [predict_seconds(gauge.facts, plan, gauge.inputs, device) for plan in plans]
        assert seconds[0] > seconds[1] > seconds[2] > 0
    with pytest.raises(InputError, match="tpu"):
        find_device("tpu")


def test_a_generation_is_its_slowest_and_auto_is_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slowest = [find_device(name).name for name in ("sm_80", "sm_89", "sm_90")]
    assert slowest == ["a100", "l4", "h100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") is find_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = {
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA L40S": "l4",
        "NVIDIA GH200 480GB": "h200",
        "NVIDIA RTX 6000 Ada Generation": "l4",
    }
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    for name, known in said.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert find_device("auto").name == known
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    with pytest.raises(InputError, match="sm_120"):
        find_device("auto")


def test_this_cpu_is_measured() -> None:
    cpu = find_device("cpu")
    assert 1e9 < cpu.peak(torch.float32) < 1e14 and 1e8 < cpu.bandwidth < 1e13
    assert find_device("cpu") is cpu


def test_what_was_measured_of_a_cpu_is_stated_again() -> None:
    cpu = find_device("cpu")
    again = find_device(cpu.stated)
    assert again.flops == cpu.flops and again.bandwidth == cpu.bandwidth
    assert again.name == again.stated == cpu.stated and find_device("h100").stated == "h100"


@pytest.mark.parametrize(
    "text",
    [
        "cpu{float32=1e9 bandwidth=1e9}",
        "cpu{float32=1e9 bfloat16=0 bandwidth=1e9}",
        "cpu{float32=1e9 bfloat16=1e9 bandwidth=inf}",
        "cpu{float32=1e9 bfloat16=1e9 bandwidth=1e9 cores=2}",
        "cpu{",
    ],
)
def test_a_cpu_stated_in_part_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        find_device(text)
