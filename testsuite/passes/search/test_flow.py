"""Retained flow: 1 where nothing goes, else the sums over the rows that stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from testsuite.passes.families import plan
from testsuite.passes.search.searched import llava, replay, seen

from tokopt.ir.plan import Plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.search.flow import Flow


def flow() -> Flow:
    return Flow(llava().facts, replay(), seen(), find_method, 0)


def test_a_plan_that_drops_nothing_keeps_all_flow() -> None:
    assert abs(flow().retained(plan("decoder:2 fastv 36")) - 1) < 1e-6
    assert abs(flow().retained(plan("vision:end vtc_cls 36")) - 1) < 1e-6


def test_a_stage_in_the_decoder_keeps_what_numpy_says() -> None:
    """FastV's choice is the last row's attention: the flow of its own rows, layer for layer."""
    found = flow().retained(plan("decoder:2 fastv 4"))
    layers: list[list[float]] = [[], [], [], []]
    for one in seen():
        stack = one.stacks["decoder"]
        for item, visual in enumerate(stack.candidates.numpy()):
            with torch.no_grad():
                score = relay_attention(stack.layers[1], -1)[item].numpy()[visual]
            stay = np.argsort(-score, kind="stable")[:4]
            for depth, layer in enumerate(stack.layers):
                values = np.abs(layer.value[item].float().mean(0).numpy()).sum(-1)[visual]
                mass = layer.row(-1)[item].mean(0).numpy()[visual] * values
                there = stay if depth >= 2 else np.arange(len(mass))
                layers[depth].append(float(mass[there].sum() / mass.sum()))
    assert abs(found - np.mean([np.mean(values) for values in layers])) < 1e-5


def test_rows_that_a_tower_drops_are_missing_in_every_layer_of_the_decoder() -> None:
    judged = flow()
    few, more = (judged.retained(plan(f"vision:end stride {k}")) for k in (6, 18))
    assert 0 < few < more < 1
    both = judged.retained(plan("vision:end stride 18, decoder:3 stride 2"))
    assert both < more


def test_rows_that_come_back_are_there_again() -> None:
    kept = flow().by_layer(plan("decoder:1 stride 4"))["decoder"]
    back = replace(plan("decoder:1 stride 4").stages[0], until="decoder:2")
    between = flow().by_layer(Plan((back,)))["decoder"]
    assert between[1] == kept[1] < 1 and kept[2] < 1
    assert torch.allclose(between[[0, *range(2, len(between))]], torch.ones(len(between) - 1))
