"""Fixtures for every test: FileCheck on printed programs, zoo programs made once."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
from collections.abc import Callable

import pytest
import torch
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts
from torch.export import ExportedProgram

torch.set_num_threads(1)


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
