"""Programs whose caches are stored: against eager formats around the programs as they were."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.cache import find_caches
from tokopt.ir.cache_sides import find_layer_caches
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.turning import Turning, find_turning
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.program import with_stored
from tokopt.passes.kv.registry import FORMATS
from tokopt.passes.kv.samples import Samples
from tokopt.passes.normalize import normalize

SIZES = Sizes(layers=2, tower_layers=1)
ROWWISE = sorted(name for name, format in FORMATS.items() if format.rowwise)
CACHES = [f"cache_{i}" for i in range(4)]


@cache
def programs() -> dict[str, ExportedProgram]:
    made = parts(SIZES, dynamic=True)
    return {name: normalize(one) for name, one in made.items()}


def ran(exported: ExportedProgram, *given: object) -> list[Tensor]:
    with torch.no_grad():
        found = exported.module()(*given)
    return list(found) if isinstance(found, (tuple, list)) else [found]


def prompt() -> tuple[Tensor, Tensor]:
    pixels, ids = inputs(SIZES, 2, 7)
    (features,) = ran(programs()["vision"], pixels)
    return ids, features


def kept(format: str, rows: list[Tensor]) -> list[Kept]:
    """Keys and values in turn, as the hand-written model has its caches."""
    every = []
    for number, one in enumerate(rows):
        side = "key" if number % 2 == 0 else "value"
        constants = FORMATS[format].calibrate(side, Samples([one]))
        every.append(Kept(f"kv_{number}", side, FORMATS[format], constants))
    return every


def test_what_an_attention_reads_as_keys_and_as_values_is_told_layer_by_layer() -> None:
    decode = programs()["decode"]
    caches = find_caches(decode, CACHES)
    assert caches is not None
    layers = find_layer_caches(decode, caches)
    assert [(one.key.input, one.value.input) for one in layers] == [
        ("cache_0", "cache_1"),
        ("cache_2", "cache_3"),
    ]
    assert all(one.turning is None and one.known for one in layers)
    assert find_layer_caches(decode, caches[::-1]) == layers


@pytest.mark.parametrize("format", ROWWISE)
def test_prefill_and_two_steps_are_those_of_the_format_around_them(format: str) -> None:
    ids, features = prompt()
    prefill, decode = programs()["prefill"], programs()["decode"]
    logits, *rows = ran(prefill, ids, features)
    sides = kept(format, rows)
    first = with_stored(prefill, {}, dict(enumerate(sides, 1)))
    step = with_stored(decode, dict(zip(CACHES, sides, strict=True)), dict(enumerate(sides, 1)))
    got_logits, *stored = ran(first, ids, features)
    assert torch.equal(got_logits, logits)
    for side, one, full in zip(sides, stored, rows, strict=True):
        assert torch.equal(one, side.handed(full))
    token, place = ids[:, -1:], torch.full_like(ids[:, :1], ids.shape[1])
    for number in range(2):
        whole = [k.alone(s) for k, s in zip(sides, stored, strict=True)]
        wanted, *grown = ran(decode, token, place + number, whole)
        got, *now = ran(step, token, place + number, stored)
        assert torch.allclose(got, wanted, atol=1e-5)
        for k, one, full in zip(sides, now, grown, strict=True):
            assert torch.equal(one, k.handed(full))
        stored = [torch.cat(pair, 2) for pair in zip(stored, now, strict=True)]
    saved = sum(one.nbytes for one in now) / sum(2 * one.numel() for one in grown)
    assert saved == pytest.approx({"half": 1, "int4": 0.25}.get(format, 0.5))


def test_constants_are_weights_of_the_program() -> None:
    ids, features = prompt()
    _, *rows = ran(programs()["prefill"], ids, features)
    made = with_stored(programs()["prefill"], {}, {1: kept("int8", rows)[0]})
    stored = {name for name in made.state_dict if name.startswith("kv_0_")}
    assert stored == {"kv_0_centre", "kv_0_scale"}
    assert stored <= set(made.graph_signature.buffers)
    assert not stored & set(programs()["prefill"].state_dict)


class Turned(nn.Module):
    """A key that is turned in its first ``width`` channels."""

    def __init__(self, form: str, width: int) -> None:
        super().__init__()
        self.form, self.width, self.key = form, width, nn.Linear(16, 16)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        rows = self.key(x).unflatten(-1, (2, 8)).transpose(1, 2)
        turned, rest = rows[..., : self.width], rows[..., self.width :]
        cos, sin, half = angles.cos(), angles.sin(), self.width // 2
        if self.form == "halves":
            other = torch.cat([-turned[..., half:], turned[..., :half]], -1)
            whole = turned * torch.cat([cos, cos], -1) + other * torch.cat([sin, sin], -1)
        elif self.form == "neighbours":
            odd, even = turned[..., 1::2], turned[..., ::2]
            whole = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
        elif self.form == "complex":
            pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)))
            turns = torch.polar(torch.ones_like(cos), angles)
            whole = torch.view_as_real(pairs * turns).flatten(-2)
        elif self.form == "parts":
            left, right = turned.chunk(2, -1)
            whole = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
        elif self.form == "strange":
            whole = torch.cat([-turned.flip(-1)[..., :half], turned[..., half:]], -1) * sin[..., :1]
        else:
            whole = turned * 2
        return torch.cat([whole, rest], -1) if self.width < 8 else whole


def turning(form: str, width: int) -> Turning | None:
    given = (torch.randn(2, 5, 16), torch.randn(5, width // 2))
    rows = {0: Dim.AUTO, 1: Dim.AUTO}, None
    exported = normalize(export(Turned(form, width).eval(), given, dynamic_shapes=rows))
    (end,) = exported.graph.find_nodes(op="output")
    return find_turning(end.args[0][0])


def test_the_channels_that_turn_are_read_off_the_graph() -> None:
    assert turning("halves", 8) == Turning(8, False)
    assert turning("halves", 4) == Turning(4, False)
    assert turning("parts", 8) == Turning(8, False)
    assert turning("complex", 8) == Turning(8, True)
    assert turning("neighbours", 8) == Turning(8, True)
    assert turning("none", 8) is None
    with pytest.raises(UnsupportedError, match="a way that is not known"):
        turning("strange", 8)
