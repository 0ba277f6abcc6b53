"""Failure: an exception as a message of four parts and an exit code."""

from __future__ import annotations

import errno
import json
import os
import traceback
from collections.abc import Sequence

from tokopt.cli.console import say
from tokopt.cli.crash import write_crash
from tokopt.ir.errors import InputError, InternalError, TokoptError

SURROUNDINGS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""What the operating system refuses for reasons the user can mend."""


def as_tokopt_error(error: Exception) -> TokoptError:
    """Return an exception as one of ours, the original as its cause."""
    if isinstance(error, TokoptError):
        return error
    known: TokoptError
    if isinstance(error, OSError) and error.errno in SURROUNDINGS:
        known = InputError(error.strerror or str(error), where=error.filename)
    elif isinstance(error, MemoryError):
        known = InputError("out of memory", hint="a smaller model, or a machine with more")
    elif isinstance(error, ModuleNotFoundError) and _is_foreign(error.name):
        known = InputError(
            f"the package {error.name} is not installed", hint=f"pip install {error.name}"
        )
    else:
        known = InternalError(f"{type(error).__name__}: {error}")
    known.__cause__ = error
    return known


def _is_foreign(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] != "tokopt"


def report(error: TokoptError, words: Sequence[str], as_json: bool) -> int:
    """Say what went wrong (and write a crash folder for a bug of ours); return the exit code."""
    if isinstance(error, InternalError):
        folder = write_crash(error, words)
        ask = f"this is a bug of tokopt; report it with the folder {folder}"
        error.hint = f"{error.hint}; {ask}" if error.hint else ask
    if os.environ.get("TOKOPT_TRACEBACK") == "1":
        traceback.print_exception(error)
    say(f"error: {error}")
    for note in getattr(error, "__notes__", ()):
        say(f"  note: {note}")
    if as_json:
        print_error(type(error).__name__, error.exit_code, error)
    return error.exit_code


def print_error(kind: str, code: int, error: TokoptError) -> None:
    """Print an error as one JSON object to stdout."""
    text = {key: getattr(error, key) for key in ("what", "where", "expected", "hint")}
    print(
        json.dumps({"schema_version": 1, "error": {"kind": kind, "exit_code": code, **text}}),
        flush=True,
    )
