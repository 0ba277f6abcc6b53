"""Attention over a stored cache: one operator in ONNX Runtime, which computes what was there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from testsuite.passes.kv.rows import constants_of, rows_like_a_cache
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.functional import scaled_dot_product_attention

from tokopt.passes.decompose import decompose, dialect_nodes
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.program import with_stored
from tokopt.passes.kv.registry import FORMATS
from tokopt.passes.normalize import normalize
from tokopt.targets.calling import runner_of
from tokopt.targets.onnx import grouped_query
from tokopt.targets.registry import find

ITEMS, OWN, PAST = 2, 2, 9


@dataclass(frozen=True)
class Form:
    """How decode's attention is written."""

    heads: int = 4
    width: int = 16
    mask: str = "none"
    repeat: str = "written"
    whole: bool = True
    rows: int = 1
    dtype: torch.dtype = torch.float32


class Step(nn.Module):
    """One layer of decode: the caches grow by a row, and one query reads them."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, seen: Tensor
    ) -> tuple[Tensor, ...]:
        grown = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        read, times, mask = grown, self.form.heads // OWN, None
        if times > 1 and self.form.repeat == "written":
            read = tuple(
                one[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for one in grown
            )
        elif times > 1 and self.form.repeat == "turns":  # every second query head reads a head
            read = tuple(one[:, None].expand(-1, times, -1, -1, -1).flatten(1, 2) for one in grown)
        if self.form.mask != "none":
            mask = seen[:, None, None, :] > 0
        if self.form.mask == "added":
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        shared = times > 1 and self.form.repeat == "shared"
        out = scaled_dot_product_attention(query, *read, attn_mask=mask, enable_gqa=shared)
        return (out, *grown) if self.form.whole else (out, key, value)


def made(
    form: Form, format: str, values: str = ""
) -> tuple[ExportedProgram, ExportedProgram, dict[str, Tensor]]:
    """Return the step with a stored cache, written out and raised, and what it takes."""
    generator = torch.Generator().manual_seed(3)
    rows = rows_like_a_cache(PAST + form.rows, width=form.width)
    query = torch.randn(ITEMS, form.heads, form.rows, form.width, generator=generator)
    seen = torch.ones(ITEMS, PAST + form.rows)
    seen[1, :4] = 0
    given = {
        "query": query, "key": rows[:, :, PAST:], "value": rows[:, :, PAST:].flip(1),
        "keys": rows[:, :, :PAST], "values": rows[:, :, :PAST].flip(1), "seen": seen,
    }  # fmt: skip
    given = {name: value.contiguous().to(form.dtype) for name, value in given.items()}
    shapes = {name: {} for name in given} | {"seen": {1: Dim.AUTO}}
    shapes |= {"keys": {2: Dim.AUTO}, "values": {2: Dim.AUTO}}
    exported = normalize(export(Step(form).eval(), (), given, dynamic_shapes=shapes))
    chosen, other = FORMATS[format], FORMATS[values or format]
    kept = {
        "keys": Kept("k", "key", chosen, constants_of(chosen, "key", rows)),
        "values": Kept("v", "value", other, constants_of(other, "value", rows)),
    }
    outputs = {1: kept["keys"], 2: kept["values"]}
    for name, one in kept.items():
        given[name] = one.handed(given[name])
    plain, raised = (with_stored(exported, kept, outputs, way) for way in (False, True))
    return plain, raised, given


FORMS = {
    "a head of keys each": Form(heads=2),
    "shared heads, padded": Form(mask="bool"),
    "heads shared by the operator": Form(mask="added", repeat="shared"),
    "new rows alone": Form(whole=False),
}


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_raised_step_is_the_step_and_onnx_runtime_computes_it_in_one_operator(
    form: Form, format: str, tmp_path: Path
) -> None:
    plain, raised, given = made(form, format)
    assert [node.target.__name__ for node in dialect_nodes(raised.graph)] == [
        "cached_attention.default"
    ]
    wanted = runner_of(plain)(given)
    target = find("onnxruntime-cpu")
    if not target.native:
        pytest.skip("the installed ONNX Runtime is older than what was tried")
    target.lower(raised, tmp_path)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert operators["GroupQueryAttention"] == 1
    assert operators["Attention"] == operators["MatMul"] == 0
    for run in (runner_of(raised), runner_of(decompose(raised)), target.open(tmp_path)):
        got = run(given)
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert got[name].dtype == value.dtype
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


def test_the_new_row_is_read_as_it_is() -> None:
    """As stored it is another row, whose attention is not near: so the test above can fail."""
    plain, _, given = made(Form(heads=2), "int4")
    rows = given["key"], given["value"]
    name, *_ = wanted = runner_of(plain)(given)
    kept = {side: FORMATS["int4"] for side in ("key", "value")}
    for side, one in zip(kept, rows, strict=True):
        constants = constants_of(kept[side], side, rows_like_a_cache(PAST + 1, width=16))
        state = kept[side].quantize(side, one, constants, None)
        given[side] = kept[side].dequantize(side, state, constants)
    got = runner_of(plain)(given)
    assert not torch.allclose(got[name], wanted[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", [Form(width=12), Form(width=20)], ids=str)
def test_a_head_width_that_is_no_multiple_of_8_is_written_out(form: Form, tmp_path: Path) -> None:
    plain, raised, given = made(form, "int8")
    target = find("onnxruntime-cpu")
    target.lower(raised, tmp_path)
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "GroupQueryAttention" not in operators
    wanted, got = runner_of(plain)(given), target.open(tmp_path)(given)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


def test_half_precision_has_no_codes_to_raise() -> None:
    assert not dialect_nodes(made(Form(), "half")[1].graph)


def test_fp8_is_raised_and_means_what_was_there() -> None:
    """ONNX Runtime refuses the type; Triton's kernel reads it."""
    plain, raised, given = made(Form(mask="bool"), "fp8")
    assert len(dialect_nodes(raised.graph)) == 1
    wanted, got = runner_of(plain)(given), runner_of(raised)(given)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        torch.testing.assert_close(got[name].float(), value.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "kinds"),
    [(Form(mask="bool"), ("int8", "int4")), (Form(mask="added", rows=3), ("int8", "int8"))],
    ids=["two formats", "three rows"],
)
def test_what_the_operator_does_not_take_is_raised_and_written_out_again(
    form: Form, kinds: tuple[str, str], tmp_path: Path
) -> None:
    plain, raised, given = made(form, *kinds)
    assert len(dialect_nodes(raised.graph)) == 1
    target = find("onnxruntime-cpu")
    target.lower(raised, tmp_path)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert operators["Attention"] == 1 and not operators["GroupQueryAttention"]
    wanted = runner_of(plain)(given)
    for run in (runner_of(raised), target.open(tmp_path)):
        for name, value in run(given).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-5)


def test_in_half_precision_it_is_raised_and_nearer_than_what_was_there() -> None:
    full, halves = made(Form(), "int8"), made(Form(dtype=torch.float16), "int8")
    assert len(dialect_nodes(halves[1].graph)) == 1
    exact, *_ = runner_of(full[0])(full[2]).values()
    (was, *_), (got, *_) = (runner_of(one)(halves[2]).values() for one in halves[:2])
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), exact, rtol=4e-3, atol=4e-3)
    assert (got.float() - exact).abs().mean() <= (was.float() - exact).abs().mean()


def test_a_prompts_rows_are_not_raised() -> None:
    assert not dialect_nodes(made(Form(rows=17), "int8")[1].graph)


def test_heads_that_read_in_turns_stay_written_out() -> None:
    assert not dialect_nodes(made(Form(repeat="turns"), "int8")[1].graph)


def test_an_older_onnx_runtime_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_query.onnxruntime, "__version__", "1.30.2")
    assert grouped_query.native() == frozenset()
    monkeypatch.setattr(grouped_query.onnxruntime, "__version__", "1.31.0")
    assert grouped_query.native() == {"cached_attention"}
