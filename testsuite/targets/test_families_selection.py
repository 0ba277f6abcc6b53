"""Rows kept by the compiled file, against numpy on what the eager model itself attends to.

Nothing of the compiler computes the expectation: the Hugging Face layers run one by one, rows are
taken away between them by hand, ``output_attentions`` and the methods' formulas do the rest.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from testsuite.passes.families import Lowered, lowered
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth
from testsuite.passes.methods.test_flowcut import tower_flow
from testsuite.zoo import llava
from torch import Tensor

BATCH, VISUAL = 2, llava.VISUAL
CARRIED = "vision:1 flowcut 24, vision:end flowcut 18, decoder:2 fastv 4"
MIXED = "vision:end vtc_cls 18, decoder:1 random 8, decoder:3 stride 3"


@functools.cache
def kept_by(text: str) -> list[list[list[int]]]:
    """Return the original rows kept, per stage and item, by the file that a plan compiles to."""
    done: Lowered = lowered("llava", text)
    pixels, ids = llava.inputs(BATCH, VISUAL + 9, 0)
    outputs = done.runner(done.family.named((pixels, ids)))
    kept = [outputs[f"trace.{i}.kept"].tolist() for i in range(len(done.checked.plan.stages))]
    return kept


def patches(rows: list[int]) -> list[int]:
    """Return a tower's kept rows without the class token, which is always there."""
    assert rows[0] == 0
    return rows[1:]


def visual_places(rows: list[int], item: int) -> list[int]:
    """Return which of the item's visual placeholders are among kept rows; text must all be."""
    flags = truth().visual[item]
    assert {r for r in range(len(flags)) if not flags[r]} <= set(rows)
    numbers = np.cumsum(flags) - 1
    return [int(numbers[r]) for r in rows if flags[r]]


@functools.cache
def flow_by_hand() -> tuple[list[list[int]], list[list[int]]]:
    """The tower layer by layer; rows leave after layer 0; scores of the survivors are carried."""
    core = llava.model(attention="eager", seed=0).model
    tower = getattr(core.vision_tower, "vision_model", core.vision_tower)
    pixels, _ = llava.inputs(BATCH, VISUAL + 9, 0)
    with torch.no_grad():
        x = tower.pre_layrnorm(tower.embeddings(pixels))
        rows = [list(range(VISUAL + 1)) for _ in range(BATCH)]
        x, first = layer_flow(tower.encoder.layers[0], x)
        allowed = np.array([[False] + [True] * VISUAL] * BATCH)
        stay = [[0, *kept] for kept in kept_rows(first, allowed, 24)]
        rows = [[rows[i][r] for r in stay[i]] for i in range(BATCH)]
        x = torch.stack([x[i, stay[i]] for i in range(BATCH)])
        total = np.stack([first[i, stay[i]] for i in range(BATCH)])
        for layer in tower.encoder.layers[1:3]:
            x, step = layer_flow(layer, x)
            total = total / 2 + step / 2
    left = kept_rows(total, allowed[:, :25], 18)
    return [r[1:] for r in rows], [[rows[i][r] for r in left[i]] for i in range(BATCH)]


def layer_flow(layer: torch.nn.Module, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """Run one layer; return its output and the flow of every row, from its eager attention."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.self_attn.register_forward_hook(lambda *a: seen.update(attention=a[-1][1])),
        layer.self_attn.v_proj.register_forward_hook(lambda *a: seen.update(value=a[-1])),
    ]
    out = layer(x, None)
    for hook in hooks:
        hook.remove()
    values = seen["value"].unflatten(-1, (-1, 16)).transpose(1, 2).double().numpy()
    inside = [False] + [True] * (x.shape[1] - 1)
    attention = seen["attention"][:, :, 0].double().numpy()
    flow = [tower_flow(a, v, inside) for a, v in zip(attention, values, strict=True)]
    return out[0] if isinstance(out, tuple) else out, np.array(flow)


def test_flowcut_keeps_what_the_published_recurrence_keeps_over_two_stages() -> None:
    first, second = flow_by_hand()
    found = kept_by(CARRIED)
    assert [patches(rows) for rows in found[0]] == first
    assert [patches(rows) for rows in found[1]] == second
    assert first[0] != first[1] and second[0] != second[1]


def test_what_leaves_the_tower_is_missing_in_the_decoder() -> None:
    """A decoder stage keeps a subset of the placeholders whose patches the tower kept."""
    found = kept_by(CARRIED)
    for item in range(BATCH):
        left = visual_places(found[2][item], item)
        assert len(left) == 4
        assert {place + 1 for place in left} <= set(patches(found[1][item]))


def test_fastv_keeps_what_the_last_prompt_token_attends_to() -> None:
    expected = truth().decoder[1][:, :, -1].mean(1)
    kept = kept_rows(expected, truth().visual, 4)
    found = kept_by("decoder:2 fastv 4")[0]
    for item in range(BATCH):
        numbers = np.cumsum(truth().visual[item]) - 1
        assert visual_places(found[item], item) == [int(numbers[r]) for r in kept[item]]
    assert kept[0] != kept[1]


def test_vtc_cls_keeps_what_the_class_token_attends_to() -> None:
    expected = truth().tower[2][:, :, 0].mean(1)
    allowed = np.array([[False] + [True] * VISUAL] * BATCH)
    kept = kept_rows(expected, allowed, 18)
    assert [patches(rows) for rows in kept_by(MIXED)[0]] == kept
    assert kept[0] != kept[1]


def test_random_and_stride_keep_what_their_formulas_say() -> None:
    first, second, third = kept_by(MIXED)
    for item in range(BATCH):
        there = [row - 1 for row in patches(first[item])]  # 18 placeholders reach the decoder
        drawn = visual_places(second[item], item)
        assert drawn == [there[n] for n in kept_numbers(permuted(18), 8)]
        even = [float((n + 1) * 3 // 8 > n * 3 // 8) for n in range(8)]
        assert visual_places(third[item], item) == [drawn[n] for n in kept_numbers(even, 3)]


def kept_numbers(scores: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:keep])


def permuted(count: int) -> list[float]:
    """Four rounds of cubing modulo 16777199 after adding sha256("seed:round")'s first 8 bytes."""
    import hashlib

    found = []
    for number in range(count):
        for turn in range(4):
            key = int.from_bytes(hashlib.sha256(f"0:{turn}".encode()).digest()[:8], "big")
            number = pow(number + key, 3, 16777199)
        found.append(float(number))
    return found
