"""Work by layer: what is counted by hand, and everything once."""

from __future__ import annotations

from testsuite.passes.analysed import analysed
from testsuite.zoo import handvit

from tokopt.ir.facts import analyse
from tokopt.passes.layer_work import REST, work_by_layer
from tokopt.passes.macs import count_macs
from tokopt.passes.normalize import normalize


def test_layers_and_the_rest_are_the_whole_and_like_layers_cost_alike() -> None:
    for name in ("llava", "qwen"):
        family = analysed(name)
        inputs = family.named(family.sample.all_inputs[0])
        found = work_by_layer(family.facts, inputs)
        assert sum(one.flops for one in found) == 2 * count_macs(family.facts.exported, inputs)
        for stack in family.facts.stacks:
            own = [one for one in found if one.role == stack.role]
            assert [one.depth for one in own] == [layer.depth for layer in stack.stack.layers]
            if stack.role == "decoder":
                assert len({one.flops for one in own}) == 1 and own[0].flops > 0
        assert found[-1].role == REST and found[-1].depth is None


def test_a_layer_is_its_products_counted_by_hand() -> None:
    """37 rows of 48: queries, keys and values, the projection behind, an MLP of twice the width."""
    built = handvit.build(depth=2)
    facts = analyse(normalize(built.exported))
    found = work_by_layer(facts, {"images": built.inputs[0]})
    weights = 48 * (3 * 48 + 48 + 96 + 96)
    assert [one.depth for one in found] == [0, 1, None]
    assert {one.flops for one in found[:2]} == {2 * 37 * weights + 2 * 2 * 37 * 37 * 48}
    rows = 37 * (48 + 3 * 48) + 37 * (48 + 48) + 2 * 37 * (48 + 96)  # into and out of the linears
    heads = 2 * 37 * (48 + 48) + 2 * 4 * 37 * 37  # queries, keys, values, weights twice, the result
    assert {one.bytes for one in found[:2]} == {
        4 * (weights + 3 * 48 + 48 + 96 + 48 + rows + heads)
    }
