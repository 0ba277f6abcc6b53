"""NormGrad against its definition: identity weights at every position, differentiated.  6 s."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from testsuite.passes.analysed import Analysed, analysed
from testsuite.passes.families import checked, every_input, failures
from testsuite.passes.methods.drawn_taps import drawn_taps
from torch import Tensor, nn

from tokopt.ir.errors import InputError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.gradients import gradient_orders, with_orders
from tokopt.passes.methods import normgrad
from tokopt.passes.methods.order import ranking
from tokopt.passes.methods.registry import find_method


def differentiated(blocks: nn.ModuleList, run: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return ‖∂loss/∂W‖ of a layer W = 1 in front of every block, at every row, ``[L, B, N]``."""
    weights: list[Tensor] = []

    def identity(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = given[0]
        one = torch.eye(x.shape[2]).repeat(*x.shape[:2], 1, 1).requires_grad_()
        weights.append(one)
        return (torch.einsum("bnij,bnj->bni", one, x), *given[1:])

    hooks = [block.register_forward_pre_hook(identity) for block in blocks]
    logits = run(*inputs)
    logits = logits if isinstance(logits, Tensor) else logits[0]
    last = logits if logits.dim() == 2 else logits[:, -1]
    (-last.max(-1).values).sum().backward()
    for hook in hooks:
        hook.remove()
    return torch.stack([w.grad.flatten(2).double().norm(dim=2) for w in weights])


def product(maps: Tensor) -> Tensor:
    """Return the mean over items of the product of layers' maps, each from 0 to 1, ``[N]``."""
    span = maps.amax(2, keepdim=True) - maps.amin(2, keepdim=True)
    return ((maps - maps.amin(2, keepdim=True)) / span).prod(0).mean(0)


def measured(case: Analysed) -> dict[str, tuple[int, ...]]:
    names = case.named(case.sample.inputs)
    return dict(gradient_orders(case.facts, [names], [case.observed()]))


def test_a_tower_is_ordered_by_the_gradients_of_identity_layers() -> None:
    case = analysed("handvit_short")
    module = case.sample.eager
    maps = differentiated(module.blocks, module, case.sample.inputs)
    wanted = product(maps[:, :, 1:])  # behind the class row
    found = list(measured(case)["vision"])
    assert sorted(found) == list(range(36)) and wanted[found[0]] > 2 * wanted[found[-1]]
    assert (wanted[found].diff() <= 1e-5 * wanted.max()).all()


def test_a_decoder_is_ordered_by_its_last_token_and_over_batches() -> None:
    case = analysed("llava_short")
    inputs = case.sample.inputs
    ids = next(x for x in inputs if x.dtype == torch.int64)
    language = case.sample.eager.model.model.language_model
    maps = differentiated(language.layers, case.sample.eager, inputs)
    image = ids == ids.mode().values[0]
    assert image.sum(1).tolist() == [36, 36]
    wanted = product(maps[:, image].unflatten(1, (*image.shape[:1], 36)))
    found = list(measured(case)["decoder"])
    assert (wanted[found].diff() <= 1e-4 * wanted.max()).all()
    names = case.named(inputs)
    twice = gradient_orders(case.facts, [names, names], [case.observed()] * 2)
    assert list(twice["decoder"]) == found


def test_rows_are_judged_by_their_number_in_the_original() -> None:
    taps = drawn_taps("vision")
    worth = ranking({"order": " ".join(map(str, [*range(1, 12), 0]))}, 12, "normgrad")
    assert worth is not None and worth.tolist() == [1.0, *range(12, 1, -1)]
    whole = normgrad.score(replace(taps, ranking=worth))
    assert whole[taps.candidates].view(2, -1).tolist() == [worth.tolist()] * 2
    moved = torch.arange(14).repeat(2, 1) - 5
    assert normgrad.score(replace(taps, ranking=worth, numbers=moved))[0, 7] == worth[2]
    torch.testing.assert_close(normgrad.score(taps), taps.hidden.square().sum(-1).sqrt())


def test_what_is_no_order_of_these_tokens_is_refused() -> None:
    for text in ("1 2", "0 0 1", "0 x 1", "0 1 2 3"):
        with pytest.raises(InputError, match="normgrad: order is no order of the 3 visual"):
            ranking({"order": text}, 3, "normgrad")
    assert ranking({"order": ""}, 3, "normgrad") is None


def test_an_order_goes_into_a_plan_once_and_every_gate_passes() -> None:
    case = analysed("llava_short")
    orders = measured(case)
    plan = Plan((Stage("vision:1", "normgrad", 20), Stage("decoder:1", "normgrad", 7)))
    made = with_orders(plan, find_method, lambda: orders)
    words = [str(stage.options["order"]).split() for stage in made.stages]
    assert words == [[str(n) for n in orders[role]] for role in ("vision", "decoder")]
    assert with_orders(made, find_method, dict) == made
    assert Plan.from_toml(made.to_toml()) == made
    assert failures(checked(case, made), every_input(case)) == ""
