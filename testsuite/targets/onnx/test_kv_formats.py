"""Every cache format in ONNX Runtime: rows are stored, appended to and read back as in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testsuite.exhaustive import by_default
from testsuite.passes.kv.rows import constants_of, rows_like_a_cache, salience_of
from torch import Tensor, nn
from torch.export import export

from tokopt.passes.kv.format import Format, Side, State
from tokopt.passes.kv.registry import FORMATS
from tokopt.targets.calling import runner_of
from tokopt.targets.registry import find

SIDES: tuple[Side, Side] = ("key", "value")
SHORT = ("int4", "kivi")


class Stored(nn.Module):
    """Both sides of a layer, stored, longer by 128 rows, read back; the codes beside them."""

    def __init__(self, format: Format, constants: dict[Side, State]) -> None:
        super().__init__()
        self.format = format
        for side, given in constants.items():
            for name, value in given.items():
                self.register_buffer(f"{side}_{name}", value)

    def forward(self, rows: Tensor, more: Tensor, salience: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for side in SIDES:
            buffers = dict(self.named_buffers())
            given = {n[len(side) + 1 :]: v for n, v in buffers.items() if n.startswith(side)}
            state = self.format.quantize(side, rows, given, salience)
            if self.format.name != "fp8":  # ONNX's Concat takes no float8 values
                told = torch.cat([salience, salience], 2)
                state = self.format.append(side, state, more, given, told)
            out[f"{side} rows"] = self.format.dequantize(side, state, given)
            out |= {f"{side} {n}": v for n, v in state.items() if v.dtype == torch.uint8}
        return out


@pytest.mark.parametrize("name", by_default(FORMATS, lambda name: name in SHORT))
def test_a_format_is_the_same_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    """But for values halfway between two codes, which may fall to either side."""
    rows, more = rows_like_a_cache(160), rows_like_a_cache(128, seed=2)
    format, target = FORMATS[name], find("onnxruntime-cpu")
    module = Stored(format, {side: constants_of(format, side, rows) for side in SIDES})
    inputs = {"rows": rows, "more": more, "salience": salience_of(rows)}
    exported = export(module, (), inputs).run_decompositions({})
    target.lower(exported, tmp_path)
    wanted, found = runner_of(exported)(inputs), target.open(tmp_path)(inputs)
    for key, value in wanted.items():
        assert found[key].shape == value.shape and found[key].dtype == value.dtype
        off = (found[key].double() - value.double()).abs()
        assert (off > 0.01).double().mean() < 1e-3, key
        if key.endswith("rows"):
            assert off.max() < 1  # a step
