"""A made-up command for tests of the command line: ``tokopt fake`` runs a function."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable

import pytest

from tokopt.cli import commands


def install(patch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]) -> None:
    """Make ``tokopt fake [--json] [--keep-ratio R] [words]`` the only command."""

    def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        parser = subparsers.add_parser("fake")
        parser.add_argument("--json", action="store_true")
        parser.add_argument("--keep-ratio", type=float, default=1.0)
        parser.add_argument("words", nargs="*")
        parser.set_defaults(run=run)

    module = types.ModuleType("tokopt.cli.fake")
    module.add_parser = add_parser  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "tokopt.cli.fake", module)
    patch.setattr(commands, "find_commands", lambda: {"fake": "made up"})
