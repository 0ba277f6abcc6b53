"""One small archive and one artifact of it, made once for all tests of commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from testsuite.zoo import handvit
from torch import Tensor

from tokopt.cli.main import main


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of one layer, ``images [B,3,48,48] -> [B,10]``, 36 patches."""
    path = tmp_path_factory.mktemp("archives") / "vit.pt2"
    torch.export.save(handvit.build(dynamic=True, depth=1).exported, path)
    return path


@pytest.fixture(scope="session")
def built(archive: Path) -> Path:
    """Its artifact for the eager target: 18 of 36 patches by ``stride``; do not change."""
    folder = archive.with_name("built")
    line = ["compile", str(archive), "--budget", "0.5", "--method", "stride", "--target", "eager"]
    assert main([*line, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "artifact"))


@pytest.fixture
def failed(artifact: Path) -> Path:
    """A copy marked as one that failed verification."""
    path = artifact / "manifest.json"
    text = path.read_text()
    assert text.count('"status": "ok"') == 1
    path.write_text(text.replace('"status": "ok"', '"status": "failed"'))
    return artifact


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Write tensors to a safetensors file; return its path."""

    def write(name: str = "inputs", /, **tensors: Tensor) -> str:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        return str(path)

    return write
