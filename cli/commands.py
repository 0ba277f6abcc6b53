"""Commands: the subcommands are the modules of this folder that define ``add_parser``.

A new command is one new file: ``add_parser(subparsers)`` declares its options and sets
``run=run``; ``run(args) -> int`` does the work.  Its name is the file's, and the line of help the
first of its docstring, behind the colon.  Only the module of the command that was asked for is
imported, so ``tokopt --help`` starts without torch whatever the commands import.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tokopt.cli.versions import version_text
from tokopt.ir.errors import InputError

EPILOG = """\
exit codes:
  0 done   1 a gate failed   2 usage or input   3 graph not supported   4 budget infeasible
  5 a bug of tokopt   130 interrupted   141 the reader of the output went away

environment:
  TOKOPT_DUMP=DIR      write the program before and after every pass, and the differences
  TOKOPT_VERIFY=0      do not check the graph after every pass
  TOKOPT_TRACEBACK=1   show tracebacks and the warnings of libraries
"""


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are tokopt's own, and that takes no abbreviations."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raise ``InputError`` in place of printing and exiting."""
        raise InputError(message, where="command line", hint=f"{self.prog} --help")


class _Version(argparse.Action):
    """Print versions when asked for, not when the parser is built."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version_text())
        parser.exit()


def find_commands() -> dict[str, str]:
    """Return every command's name and its line of help, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if re.search(r"^def add_parser\(", source, re.MULTILINE):
            first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
            found[path.stem.replace("_", "-")] = first.partition(": ")[2].rstrip(".")
    return found


def make_parser(argv: Sequence[str]) -> CommandParser:
    """Return the parser for a command line: complete for the command that the line names."""
    parser = CommandParser(
        prog="tokopt",
        description="A compiler that makes exported vision-language models need far fewer visual "
        "tokens.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, line in find_commands().items():
        if name == chosen:
            module = importlib.import_module(f"tokopt.cli.{name.replace('-', '_')}")
            module.add_parser(subparsers)
            command = subparsers.choices[name]
            command.description = command.description or line
        else:
            subparsers.add_parser(name, help=line, add_help=False)
    return parser


def with_kebab_options(argv: Sequence[str]) -> list[str]:
    """Return a command line with ``--keep_ratio`` spelt ``--keep-ratio``."""
    words = list(argv)
    stop = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:stop]):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            words[place] = option.replace("_", "-") + equals + value
    return words
