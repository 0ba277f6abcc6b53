"""A new method is one new file: the program lists it, takes it, and the laws hold it. About 8 s."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TOY = '''"""Toy: the longest rows."""

from tokopt.passes.methods.method import Method
from tokopt.passes.methods.schedules import before_decoder


def score(taps):
    return taps.hidden.float().norm(dim=-1)


METHOD = Method(
    name="toy",
    paper="none",
    licence="Apache-2.0",
    cost="O(N)",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=before_decoder,
    notes="the longest rows",
)
'''
RUN = """
import sys
import pytest
import tokopt.passes.methods
tokopt.passes.methods.__path__.append({folder!r})
from tokopt.cli.main import main
assert main(["methods", "--json"]) == 0
from tokopt.passes.pipeline import parse_pipeline, print_pipeline
print(print_pipeline(parse_pipeline("select{{site=vision:end method=toy keep=14}}")))
laws = ["testsuite/passes/methods/test_laws.py", "testsuite/passes/methods/test_about.py"]
said = ["-q", "-k", "toy", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
sys.exit(pytest.main([*laws, *said, "--import-mode=importlib"]))
"""


def test_a_toy_method_needs_one_new_file_only(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(folder=str(tmp_path))],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert '"name": "toy"' in done.stdout
    assert "method=toy" in done.stdout
    assert " passed" in done.stdout and " skipped" not in done.stdout
