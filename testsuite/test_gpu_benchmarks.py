"""The benchmarks that are for a GPU run to their end here, with few rows: nothing is measured.

12 s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from testsuite.benchmarks import floor
from testsuite.benchmarks.shapes import SHAPES, TINY_SHAPES
from testsuite.exhaustive import by_default

from tokopt.targets.registry import find

DEFAULT = {"vit-l-14-336"}


def test_the_real_shapes_have_the_tokens_that_are_published() -> None:
    visual = {name: shape.visual for name, shape in SHAPES.items()}
    assert visual == {
        "vit-l-14-336": 576, "llava-1.5-7b": 576, "llava-next-7b": 2928, "qwen2.5-vl-7b": 1024,
    }  # fmt: skip
    for name, shape in SHAPES.items():
        real, tiny = shape.config(shape.layers, 1), TINY_SHAPES[name].config(1, 4)
        text = getattr(real, "text_config", real)
        widths = {"vit-l-14-336": 1024, "qwen2.5-vl-7b": 3584}
        assert text.hidden_size == widths.get(name, 4096)
        assert text.num_hidden_layers == shape.layers
        assert type(tiny) is type(real)


@pytest.mark.parametrize("shape", by_default(TINY_SHAPES, lambda name: name in DEFAULT))
def test_a_shape_is_compiled_checked_and_timed_beside_its_floor(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["eager", "onnxruntime-cpu"]
    line = ["--shape", shape, "--tiny", "--share", "4", "--layers", "1,2", "--rounds", "1"]
    options = ["--targets", ",".join(targets), "--budget", "0.5", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["floor.py", *line, *options])
    floor.main()
    found = json.loads((tmp_path / f"floor-{shape}.json").read_text())
    assert [(one["target"], one["layers"]) for one in found["targets"]] == [
        (target, layers) for layers in (1, 2) for target in targets
    ]
    assert all(one["gates"] == "ok" for one in found["targets"])
    for one in found["targets"]:
        assert one["timed"][0]["compiled/floor"]["median"] > 0
    assert set(found["whole_depth_ms"]) == set(targets)
    assert "a try" in (tmp_path / f"floor-{shape}.md").read_text()


def test_every_kernel_is_timed_beside_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from testsuite.benchmarks import kernels

    file = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--tiny", "--output", str(file)])
    kernels.main()
    found = json.loads(file.read_text())
    assert found["tiny"] and found["copy_gb_per_s"] > 0
    assert {one["operator"] for one in found["cases"]} == find("aotinductor-cuda").native
    assert all(one["kernel_gb_per_s"] > 0 for one in found["cases"])


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from testsuite.benchmarks import kernels

    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["kernels.py"])
    with pytest.raises(SystemExit, match="no CUDA device"):
        kernels.main()
