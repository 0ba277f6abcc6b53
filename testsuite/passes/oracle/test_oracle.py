"""The oracle's interface: what is computed besides, what may be forced, what is refused."""

from __future__ import annotations

import functools

import pytest
import torch
from testsuite.passes.oracle.remover import Remover
from testsuite.passes.oracle.run_plan import analysed, run_plan, same, same_rows
from testsuite.passes.oracle.sample_methods import METHODS
from testsuite.passes.oracle.tiny_block import HEAD, Form
from testsuite.passes.oracle.tiny_vit import CHANNELS, TinyVit
from torch import Tensor, nn

from tokopt.ir.errors import GateError, InputError, InternalError, UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.methods.method import Method
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.compare import compare_outputs, compare_selection
from tokopt.passes.oracle.oracle import run_oracle

PATCHES = 8
PLAN = [Stage("vision:1", "length", 5), Stage("vision:2", "unlike", 3)]


@functools.cache
def vit() -> tuple[TinyVit, Facts, Tensor]:
    """A model without learned rows, and other patches than it was traced with."""
    torch.manual_seed(0)
    model = TinyVit(Form(), patches=PATCHES, prefix=0).eval().requires_grad_(False)
    facts = analysed(model, (torch.randn(2, PATCHES, CHANNELS),))
    return model, facts, torch.randn(2, PATCHES, CHANNELS)


def test_without_learned_rows_every_row_may_go() -> None:
    model, facts, patches = vit()
    stages = [Stage("vision:1", "length", 1)]
    rows, mean, _, places = model.shortened(patches, Remover(stages, 3, lambda item, place: True))
    result = run_plan(facts, stages, patches)
    found_rows, found_mean, _ = result.outputs.values()
    same_rows(found_rows, rows, places)
    same(found_mean, mean)


def test_a_plan_without_stages_gives_the_original() -> None:
    model, facts, patches = vit()
    result = run_plan(facts, [], patches)
    for found, want in zip(result.outputs.values(), model(patches), strict=True):
        assert torch.equal(found, want)
    assert result.stages == ()


def test_outputs_are_named_and_ordered_as_in_the_program() -> None:
    _, facts, patches = vit()
    names = [spec.arg.name for spec in facts.exported.graph_signature.output_specs]
    assert list(run_plan(facts, PLAN, patches).outputs) == names


def test_scores_are_those_of_the_rows_alive_and_nan_at_the_others() -> None:
    _, facts, patches = vit()
    first, second = run_plan(facts, PLAN, patches).stages
    assert not first.scores.isnan().any() and first.candidates.all()
    assert torch.equal(second.scores.isnan(), ~first.alive)
    assert torch.equal(second.candidates, first.alive)
    worst = first.scores.masked_fill(~first.alive, torch.inf).amin(1)
    assert (first.scores.masked_fill(first.alive, -torch.inf).amax(1) < worst).all()


def test_forced_rows_are_what_the_run_goes_on_with() -> None:
    model, facts, patches = vit()
    forced = torch.zeros(2, PATCHES, dtype=torch.bool)
    forced[0, [0, 1, 4, 5, 7]], forced[1, [2, 3, 4, 5, 6]] = True, True
    index = forced.nonzero()[:, 1].view(2, 5)
    rows, _, _, places = model.shortened(patches, lambda d, _: index if d == 1 else None)
    result = run_plan(facts, PLAN[:1], patches, forced=[forced])
    assert torch.equal(result.alive[0], forced)
    same_rows(next(iter(result.outputs.values())), rows, places)
    own = run_plan(facts, PLAN[:1], patches)
    assert torch.equal(result.scores[0], own.scores[0])
    assert compare_selection(own, [forced], 1e-6) and not compare_selection(own, own.alive, 0.0)


def test_a_second_stage_is_scored_on_the_rows_that_were_forced() -> None:
    _, facts, patches = vit()
    own = run_plan(facts, PLAN, patches)
    first = own.alive[0].roll(1, 1)
    second = first & (first.cumsum(1) <= 3)
    result = run_plan(facts, PLAN, patches, forced=[first, second])
    assert torch.equal(result.scores[1].isnan(), ~first)
    assert torch.equal(result.stages[1].candidates, first)


def test_a_program_in_bf16_is_computed_in_fp32() -> None:
    torch.manual_seed(2)
    form = Form(attention="spelled", causal="mask")
    model = TinyVit(form, patches=PATCHES).eval().requires_grad_(False).bfloat16()
    patches = torch.randn(2, PATCHES, CHANNELS).bfloat16()
    result = run_plan(analysed(model, (patches,)), PLAN, patches)
    remover = Remover(PLAN, 3, lambda item, place: place >= 1)
    rows, mean, _, places = model.float().shortened(patches.float(), remover)
    found_rows, found_mean, _ = result.outputs.values()
    assert found_rows.dtype == torch.float32
    same_rows(found_rows, rows, places)
    same(found_mean, mean)


def test_attention_that_was_decomposed_is_followed_as_well() -> None:
    torch.manual_seed(3)
    model = TinyVit(Form(causal="mask"), patches=PATCHES).eval().requires_grad_(False)
    patches = torch.randn(2, PATCHES, CHANNELS)
    exported = torch.export.export(model, (patches,), strict=False).run_decompositions()
    operators = {str(node.target) for node in exported.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" not in operators
    result = run_plan(analyse(normalize(exported)), PLAN, patches)
    rows, mean, _, places = model.shortened(patches, Remover(PLAN, 3, lambda i, p: p >= 1))
    found_rows, found_mean, _ = result.outputs.values()
    same_rows(found_rows, rows, places)
    same(found_mean, mean)


def test_outputs_of_the_oracle_compare_with_a_filled_program() -> None:
    _, facts, patches = vit()
    outputs = run_plan(facts, PLAN, patches).outputs
    compiled = {name: value.nan_to_num(nan=0.0) for name, value in outputs.items()}
    assert compare_outputs(outputs, compiled, 0.0) is None
    first = next(iter(compiled))
    compiled[first] = compiled[first] + 1e-3
    wrong = compare_outputs(outputs, compiled, 1e-6)
    assert wrong is not None and wrong.output == first


def test_nan_in_an_input_is_refused_by_its_name() -> None:
    _, facts, patches = vit()
    bad = patches.clone()
    bad[0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="'patches' has NaN"):
        run_plan(facts, PLAN, bad)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = TinyVit(Form(), patches=PATCHES, prefix=0)

    def forward(self, patches: Tensor) -> Tensor:
        return self.vit(patches)[0].sqrt()


def test_an_original_that_computes_nan_is_refused_as_such() -> None:
    facts = analysed(Root().requires_grad_(False), (torch.randn(2, PATCHES, CHANNELS),))
    with pytest.raises(GateError, match="computes NaN in output 'sqrt'"):
        run_plan(facts, PLAN, vit()[2])


def run_with(given: dict[str, Tensor], stages: list[Stage], method: Method | None = None) -> None:
    run_oracle(vit()[1], Plan(tuple(stages)), given, lambda n: method or METHODS[n])


def test_inputs_that_do_not_fit_are_refused() -> None:
    patches = vit()[2]
    with pytest.raises(InputError, match="input 'patches'"):
        run_with({}, PLAN)
    with pytest.raises(InputError, match="no input 'ids'"):
        run_with({"patches": patches, "ids": patches}, PLAN)
    with pytest.raises(InputError, match=r"'patches' is .* \[2, 7, 5\]"):
        run_with({"patches": patches[:, :7]}, PLAN)


def test_plans_that_do_not_fit_are_refused() -> None:
    given = {"patches": vit()[2]}
    with pytest.raises(InputError, match="9 of 8"):
        run_with(given, [Stage("vision:1", "length", 9)])
    with pytest.raises(UnsupportedError, match="no site 'decoder:1'"):
        run_with(given, [Stage("decoder:1", "length", 2)])
    with pytest.raises(InputError, match="1 forced choices for 2"):
        run_plan(vit()[1], PLAN, vit()[2], forced=[torch.ones(2, PATCHES) > 0])
    with pytest.raises(InputError, match="forced choice 0"):
        run_plan(vit()[1], PLAN[:1], vit()[2], forced=[torch.ones(2, 3) > 0])


def method(score) -> Method:  # type: ignore[no-untyped-def]
    return Method("bad", "", frozenset(), score, lambda setting: ())


def test_a_score_that_fails_or_has_another_shape_is_told() -> None:
    given = {"patches": vit()[2]}
    with pytest.raises(InternalError, match=r"bad gave a score of shape \(2, 8, 12\)"):
        run_with(given, PLAN[:1], method(lambda taps: taps.hidden))
    with pytest.raises(InternalError, match="the score of bad failed"):
        run_with(given, PLAN[:1], method(lambda taps: taps.hidden @ taps.hidden))


def test_a_score_is_told_about_the_stage_and_the_place() -> None:
    seen = []

    def score(taps):  # type: ignore[no-untyped-def]
        seen.append(taps)
        return taps.hidden[..., 0]

    run_with({"patches": vit()[2]}, [Stage("vision:2", "length", 3, {"start": 2})], method(score))
    (taps,) = seen
    assert (taps.keep, taps.group, taps.seed, taps.layer_count) == (3, 1, 0, 3)
    assert dict(taps.options) == {"start": 2} and taps.relay is None
    assert [layer.depth for layer in taps.layers] == [0, 1]
    assert all(abs(layer.scale - HEAD**-0.5) < 1e-9 for layer in taps.layers)


def test_a_method_that_needs_a_relay_says_so_itself() -> None:
    with pytest.raises(UnsupportedError, match="bad needs a relay"):
        run_with({"patches": vit()[2]}, PLAN[:1], method(lambda t: t.want_relay("bad", "length")))
