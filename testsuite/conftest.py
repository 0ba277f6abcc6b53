"""Fixtures for every test: FileCheck on printed programs, zoo programs made once."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import os
from collections.abc import Callable

import pytest
import torch
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts
from hypothesis import settings
from torch.export import ExportedProgram

from tokopt.ir.collector import collect_seldom
from tokopt.targets.registry import find

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for child processes
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when anything imports Triton
torch.set_num_threads(1)
collect_seldom()
settings.register_profile("repeatable", derandomize=True)  # a red run is a change, not chance
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write golden files anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: no process is left alone with a long one at the end.

    Skip what needs the extra mlir where it is not installed.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    wanting = [item for item in items if item.get_closest_marker("needs_mlir")]
    reason = find("mlir").available() if wanting else None
    for item in wanting if reason else ():
        item.add_marker(pytest.mark.skip(reason=f"MLIR: {reason}"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return ``golden(name, text)``: compare with ``goldens/name`` beside the test's file.

    ``pytest --regenerate`` writes the files instead; read the difference before committing it.
    """

    def compare(name: str, text: str) -> None:
        file = request.path.parent / "goldens" / name
        if request.config.getoption("--regenerate"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert text == file.read_text(), f"{file} differs; pytest {request.path} --regenerate"

    return compare


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return ``check(text)``: match a text against the CHECK lines of the test's docstring."""

    def compare(text: str) -> None:
        pattern = inspect.getdoc(request.function) or ""
        file_check(text, pattern, request.node.name)

    return compare


def file_check(text: str, pattern: str, name: str) -> None:
    """Fail with FileCheck's message and the text where the lines of ``pattern`` do not match."""
    options = Options(match_filename=name)
    said = io.StringIO()
    lines = Parser(options, io.StringIO(pattern + "\n"), *pattern_for_opts(options))
    matcher = Matcher(options, FInput(name, text), lines)
    matcher.stderr = said
    with contextlib.redirect_stderr(said):
        code = matcher.run()
    if code:
        pytest.fail(f"{said.getvalue()}\n--- the text ---\n{text}", pytrace=False)


@functools.cache
def _normal(family: str) -> ExportedProgram:
    from tokopt.passes.normalize import normalize

    return normalize(importlib.import_module(f"testsuite.zoo.{family}").build().exported)


@pytest.fixture(scope="session")
def normal() -> Callable[[str], ExportedProgram]:
    """Return ``normal(family)``: a zoo model's program in normal form, made once; do not change."""
    return _normal
