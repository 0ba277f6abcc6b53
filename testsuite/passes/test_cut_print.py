"""The cut, read off the printed program: what is gathered, on which dims, and what is restored."""

from __future__ import annotations

from collections.abc import Callable

from torch.export import ExportedProgram

from tokopt.ir.plan import Outputs, Plan, Stage
from tokopt.ir.text import print_graph
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method

Check = Callable[[str], None]
Normal = Callable[[str], ExportedProgram]


def rewritten(program: ExportedProgram, *stages: Stage, outputs: Outputs = "full") -> str:
    return print_graph(apply_plan(program, Plan(stages, outputs=outputs), find_method).exported)


def test_a_decoder_stage_gathers_the_stream_the_rotary_tables_and_both_dims_of_the_mask(
    check: Check, normal: Normal
) -> None:
    """
    CHECK: [[INDEX:%\\w+]] : i64[1, 18] = tokopt.select({{.*}}, 18)
    CHECK: f32[1, 18, 64] = tokopt.gather(%add_{{[0-9]+}}, {{.*}}, 1, [])
    CHECK: f32[1, 1, 18, 16] = tokopt.gather
    CHECK: f32[1, 1, 18, 16] = tokopt.gather
    CHECK: [[ROWS:%\\w+]] : bool[1, 1, 18, 45] = tokopt.gather(%expand
    CHECK: [[MASK:%\\w+]] : bool[1, 1, 18, 18] = tokopt.gather([[ROWS]], {{.*}}, 3, [])
    CHECK: f32[1, 4, 18, 16] = aten.scaled_dot_product_attention({{.*}}, [[MASK]]
    CHECK: f32[1, 45, 200] = tokopt.restore(
    """
    check(rewritten(normal("llava"), Stage("decoder:2", "fastv", 9)))


def test_a_tower_stage_restores_before_the_merge_and_drops_the_holes_behind_it(
    check: Check, normal: Normal
) -> None:
    """
    CHECK: tokopt.select({{.*}}, 9)
    CHECK: aten.scaled_dot_product_attention
    CHECK: f32[36, 64] = tokopt.restore(
    CHECK: aten.masked_scatter
    CHECK: i64[1, 18] = tokopt.select({{.*}}, 18)
    CHECK: f32[1, 18, 64] = tokopt.gather(
    CHECK: f32[1, 4, 18, 16] = aten.scaled_dot_product_attention
    """
    check(rewritten(normal("llava"), Stage("vision:1", "vtc_cls", 9)))


def test_whole_groups_leave_a_tower_whose_merger_joins_them(check: Check, normal: Normal) -> None:
    """
    CHECK: i64[1, 6] = tokopt.select({{.*}}, 6)
    CHECK: f32[24, 64] = tokopt.gather(
    CHECK: f32[1, 4, 24, 16] = aten.scaled_dot_product_attention
    CHECK: f32[24, 64] = tokopt.restore(
    """
    check(rewritten(normal("qwen2_5_vl"), Stage("vision:3", "random", 24)))


def test_kept_outputs_are_not_restored(normal: Normal) -> None:
    text = rewritten(normal("llava"), Stage("decoder:2", "fastv", 9), outputs="kept")
    assert "tokopt.restore" not in text
    last = rewritten(normal("llava"), Stage("decoder:2", "fastv", 9), outputs="last")
    assert "f32[1, 1, 200] = aten.slice.Tensor(%linear" in last
