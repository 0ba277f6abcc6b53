"""The wheel: built, installed into an empty environment, and run from there.

The package is made of links (``src/tokopt/ir -> ../../ir``), which a build backend may silently
leave out.  Third-party packages are borrowed from the environment that runs the tests.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
LAYERS = ("ir", "passes", "targets", "cli")


def ran(*command: str | Path, **options: str | Path) -> str:
    """Run a command outside the checkout and return what it printed; fail with all it said."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that the checkout stays clean."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, and the wheel is built without a download")
    copy = tmp_path_factory.mktemp("source") / "tokopt"
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "testsuite", "build", "dist", "*.egg-info"
    )
    shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    ran(*pip, "--wheel-dir", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that holds the wheel and borrows the rest."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    ran(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    ran(*pip, wheel, cwd=folder.parent)
    paths = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
    site = Path(ran(python, "-I", "-c", paths, cwd=folder.parent).strip())
    borrowed = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return python


def test_every_module_of_every_layer_is_in_the_wheel(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    written = {
        f"tokopt/{path.relative_to(REPOSITORY)}"
        for layer in LAYERS
        for path in (REPOSITORY / layer).rglob("*.py")
    }
    assert len(written) > 60 and written <= packed
    assert "tokopt/py.typed" in packed
    assert not any(name.startswith(("testsuite", "ir/", "passes/")) for name in packed)


def test_every_layer_is_imported_from_the_wheel(python: Path, tmp_path: Path) -> None:
    text = """
import tokopt.ir.facts, tokopt.ir.load, tokopt.cli.main, tokopt.cli.inspect, tokopt.targets
from tokopt.passes.registry import registered_passes
assert "normalize" in registered_passes()
for name in ("ir", "passes", "targets", "cli"):
    print(__import__(f"tokopt.{name}", fromlist=["x"]).__file__)
"""
    folder = python.parent.parent
    files = ran(python, "-c", text, cwd=tmp_path).splitlines()
    assert len(files) == 4 and all(Path(file).is_relative_to(folder) for file in files)


def test_the_script_of_the_wheel_says_where_it_is(python: Path, tmp_path: Path) -> None:
    lines = ran(python.parent / "tokopt", "--version", cwd=tmp_path).splitlines()
    known = dict(line.split(" ", 1) for line in lines)
    assert Path(known["path"]).is_relative_to(python.parent.parent)
    assert known["torch"] != "not installed"
    assert "inspect" in ran(python, "-m", "tokopt", "--help", cwd=tmp_path)
