"""Caches grow in place: no row is copied from step to step, and none that was given changes."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from testsuite.passes.kv.rows import rows_like_a_cache
from testsuite.targets.onnx.test_grouped_query import ITEMS, OWN, PAST, Form, Step, made
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.passes.normalize import normalize
from tokopt.targets.base import Runner
from tokopt.targets.onnx.counted import InPlace, read_in_place
from tokopt.targets.onnx.growing import LEAST, Buffers
from tokopt.targets.registry import find

STEPS = LEAST + 20
OUTPUTS = ("out", "new_keys", "new_values")
NOTHING: dict[str, InPlace] = {}

pytestmark = pytest.mark.skipif(
    not find("onnxruntime-cpu").native,
    reason="the installed ONNX Runtime is older than what was tried",
)


def whole(form: Form, module: nn.Module | None = None) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """Return a step with its cache in full, and what it takes."""
    rows = rows_like_a_cache(PAST + 1, width=form.width)
    seen = torch.ones(ITEMS, PAST + 1)
    seen[1, :4] = 0
    query = torch.randn(
        ITEMS, form.heads, 1, form.width, generator=torch.Generator().manual_seed(3)
    )
    given = {
        "query": query, "key": rows[:, :, PAST:], "value": rows[:, :, PAST:].flip(1),
        "keys": rows[:, :, :PAST], "values": rows[:, :, :PAST].flip(1), "seen": seen,
    }  # fmt: skip
    given = {name: value.contiguous().to(form.dtype) for name, value in given.items()}
    shapes = {name: {} for name in given} | {"seen": {1: Dim.AUTO}}
    shapes |= {"keys": {2: Dim.AUTO}, "values": {2: Dim.AUTO}}
    step = (Step(form) if module is None else module).eval()
    return normalize(export(step, (), given, dynamic_shapes=shapes)), given


def lowered(exported: ExportedProgram, folder: Path) -> tuple[dict[str, InPlace], Counter[str]]:
    """Write the model; return what it says of its caches, and its operators."""
    find("onnxruntime-cpu").lower(exported, folder, OUTPUTS)
    model = onnx.load(folder / "model.onnx")
    metadata = {one.key: one.value for one in model.metadata_props}
    return read_in_place(metadata), Counter(node.op_type for node in model.graph.node)


def longer(given: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the next step takes: other rows, the caches that the last one gave."""
    seen = torch.cat([given["seen"], torch.ones(ITEMS, 1)], 1)
    turned = {name: given[name].roll(1, 3) for name in ("query", "key", "value")}
    caches = {"keys": found["new_keys"], "values": found["new_values"]}
    return {**turned, **caches, "seen": seen.to(given["seen"].dtype)}


def assert_steps_agree(run: Runner, step: nn.Module, given: dict[str, Tensor], copies: int) -> None:
    """Run steps behind one another beside eager torch, and count the memory they lie in."""
    places, mine, other = set[int](), given, given
    near = 1e-5 if given["query"].dtype == torch.float32 else 2e-3
    for _ in range(STEPS):
        got = run(mine)
        wanted = dict(zip(OUTPUTS, step(**other), strict=True))
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, rtol=near, atol=near)
        places.add(got["new_keys"].data_ptr())
        mine, other = longer(mine, got), longer(other, wanted)
    assert len(places) == copies


@pytest.mark.parametrize(
    "form",
    [
        Form(heads=2),
        Form(mask="bool"),
        Form(mask="added", repeat="shared"),
        Form(repeat="shared", width=24),
        Form(mask="bool", dtype=torch.float16),
    ],
    ids=str,
)
def test_rows_are_put_behind_a_whole_cache_and_copied_only_where_room_ends(
    form: Form, tmp_path: Path
) -> None:
    exported, given = whole(form)
    in_place, operators = lowered(exported, tmp_path)
    assert operators["GroupQueryAttention"] == 1
    assert operators["Attention"] == 0
    assert {name: one.grown for name, one in in_place.items()} == {
        "keys": "new_keys",
        "values": "new_values",
    }
    target = find("onnxruntime-cpu")
    assert target.choices(tmp_path)["model.onnx"]["caches"] == "2 grow in place"
    # a prompt's cache, and where its room is full
    assert_steps_agree(target.open(tmp_path), Step(form), given, copies=2)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_codes_are_put_behind_as_well(format: str, tmp_path: Path) -> None:
    _, raised, given = made(Form(mask="bool"), format)
    in_place, _ = lowered(raised, tmp_path)
    assert in_place.keys() == {"keys", "values"}
    run, plain = find("onnxruntime-cpu").open(tmp_path), session(tmp_path)
    mine = other = given
    for _ in range(5):
        got, wanted = run(mine), plain_run(plain, other)
        assert all(torch.equal(got[name], value) for name, value in wanted.items())
        mine, other = longer(mine, got), longer(other, wanted)


def session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file, providers = str(folder / "model.onnx"), ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(file, options, providers=providers)


def plain_run(
    plain: onnxruntime.InferenceSession, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run as who knows nothing of counts does."""
    found = plain.run(list(OUTPUTS), {name: value.numpy() for name, value in given.items()})
    return {name: torch.from_numpy(one) for name, one in zip(OUTPUTS, found, strict=True)}


def test_plain_onnx_runtime_needs_no_count_and_may_give_one(tmp_path: Path) -> None:
    """What docs/kv.md shows: buffers of the caller's own, of any length, bound on both sides."""
    exported, given = whole(Form(mask="bool"))
    in_place, _ = lowered(exported, tmp_path)
    plain = session(tmp_path)
    assert [one.name for one in plain.get_inputs()] == list(given)
    wanted = plain_run(plain, given)
    assert wanted["new_keys"].shape[2] == PAST + 1
    fed = {name: given[name].numpy() for name in ("query", "key", "value", "seen")}
    binding, buffers = plain.io_binding(), {}
    for name, how in in_place.items():
        room = np.full((ITEMS, OWN, 50, 16), np.nan, np.float32)
        room[:, :, :PAST] = given[name].numpy()
        buffers[name] = onnxruntime.OrtValue.ortvalue_from_numpy(room)
        binding.bind_ortvalue_input(name, buffers[name])
        binding.bind_ortvalue_output(how.grown, buffers[name])
        if how.rows is not None:
            rows = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([PAST]))
            binding.bind_ortvalue_input(how.rows, rows)
    for name, value in fed.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("out")
    plain.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[2].numpy(), wanted["out"].numpy())
    grown = buffers["keys"].numpy()
    np.testing.assert_array_equal(grown[:, :, : PAST + 1], wanted["new_keys"].numpy())
    assert np.isnan(grown[:, :, PAST + 1 :]).all()


def test_what_was_handed_out_keeps_its_rows(tmp_path: Path) -> None:
    exported, given = whole(Form())
    lowered(exported, tmp_path)
    run = find("onnxruntime-cpu").open(tmp_path)
    first = run(given)
    kept = {name: value.clone() for name, value in first.items()}
    one = run(longer(given, first))
    held = {name: value.clone() for name, value in one.items()}
    turned = {**longer(given, first), "key": given["key"] + 1}  # the same cache goes on otherwise
    other = run(turned)
    assert not torch.equal(one["new_keys"], other["new_keys"])
    for found, was in ((first, kept), (one, held)):
        assert all(torch.equal(found[name], value) for name, value in was.items())
    assert other["new_keys"].data_ptr() != one["new_keys"].data_ptr()


class ReadTwice(Step):
    """The keys are read by something else as well."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, seen: Tensor
    ) -> tuple[Tensor, ...]:
        out, keys, values = super().forward(query, key, value, keys, values, seen)
        return out + keys.mean(), keys, values


@pytest.mark.parametrize(
    ("form", "module"),
    [
        (Form(whole=False), Step),
        (Form(repeat="turns"), Step),
        (Form(width=12), Step),
        (Form(), ReadTwice),
    ],
    ids=["new rows alone", "heads in turns", "width of 12", "read twice"],
)
def test_what_the_operator_would_not_grow_in_place_is_left_as_it_is(
    form: Form, module: type[Step], tmp_path: Path
) -> None:
    step = module(form)
    exported, given = whole(form, step)
    in_place, operators = lowered(exported, tmp_path)
    assert in_place == NOTHING and not operators["GroupQueryAttention"]
    got = find("onnxruntime-cpu").open(tmp_path)(given)
    for value, wanted in zip(got.values(), step(**given), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_a_buffer_is_held_by_what_was_last_handed_out_of_it() -> None:
    buffers, rows = Buffers(), torch.randn(1, 2, 9, 4)
    buffer = buffers.room_behind(rows)
    assert buffer.shape[2] == 9 + LEAST and torch.equal(buffer[:, :, :9], rows)
    first = buffers.hand_out(buffer, 9)
    copied = buffers.room_behind(first.clone())
    assert copied is not buffer and buffers.room_behind(first) is buffer
    last = buffers.hand_out(buffer, 10)
    assert buffers.room_behind(first) is not buffer and buffers.room_behind(last) is buffer
    full = buffers.hand_out(buffer, buffer.shape[2])
    more = buffers.room_behind(full)
    assert more is not buffer and more.shape[2] > buffer.shape[2]
    del full, last, first
    gc.collect()
    assert not buffers._last
