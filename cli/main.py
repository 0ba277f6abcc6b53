"""main: the command line; what went wrong becomes one message and one exit code.

Exit codes: 0 done; 1 a gate failed; 2 usage or input; 3 graph not supported; 4 budget infeasible;
5 a bug of tokopt (``tokopt-crash-<n>/`` is written); 130 interrupted, by ctrl-C or SIGTERM; 141
the reader of stdout went away.  Messages go to stderr, results to stdout.  With ``--json`` stdout
holds exactly one JSON object: the result, or ``{"schema_version": 1, "error": {"kind", "exit_code",
"what", "where", "expected", "hint"}}``.  ``TOKOPT_TRACEBACK=1`` shows tracebacks.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tokopt.cli.commands import make_parser, with_kebab_options
from tokopt.cli.console import say
from tokopt.cli.crash import write_crash
from tokopt.ir.errors import InputError, InternalError, TokoptError

INTERRUPTED, READER_GONE = 130, 141

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; raises nothing but ``SystemExit`` of others."""
    words = with_kebab_options(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _quiet_libraries()
    try:
        with _terminated_like_interrupted():
            code = _run(words)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        say("interrupted")
        if as_json:
            _print_error("Interrupted", INTERRUPTED, InputError("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:  # the last resort: everything unknown is our bug
        return _report(_known(error), words, as_json)


def _quiet_libraries() -> None:
    """Keep libraries' advice and deprecations off the terminal."""
    if os.environ.get("TOKOPT_TRACEBACK") != "1":
        warnings.simplefilter("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)


def _run(words: Sequence[str]) -> int:
    try:
        args = make_parser(words).parse_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return int(args.run(args))


def _known(error: Exception) -> TokoptError:
    """Return an exception as one of ours, the original as its cause."""
    if isinstance(error, TokoptError):
        return error
    known: TokoptError
    if isinstance(error, OSError) and error.errno in SURROUNDINGS:
        known = InputError(error.strerror or str(error), where=error.filename)
    elif isinstance(error, MemoryError):
        known = InputError("out of memory", hint="a smaller model, or a machine with more")
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "tokopt").startswith(
        "tokopt"
    ):
        known = InputError(
            f"the package {error.name} is not installed", hint=f"pip install {error.name}"
        )
    else:
        known = InternalError(f"{type(error).__name__}: {error}")
    known.__cause__ = error
    return known


def _report(error: TokoptError, words: Sequence[str], as_json: bool) -> int:
    if isinstance(error, InternalError):
        folder = write_crash(error, words)
        report = f"this is a bug of tokopt; report it with the folder {folder}"
        error.hint = f"{error.hint}; {report}" if error.hint else report
    if os.environ.get("TOKOPT_TRACEBACK") == "1":
        traceback.print_exception(error)
    say(f"error: {error}")
    for note in getattr(error, "__notes__", ()):
        say(f"  note: {note}")
    if as_json:
        _print_error(type(error).__name__, error.exit_code, error)
    return error.exit_code


def _print_error(kind: str, code: int, error: TokoptError) -> None:
    text = {key: getattr(error, key) for key in ("what", "where", "expected", "hint")}
    print(
        json.dumps({"schema_version": 1, "error": {"kind": kind, "exit_code": code, **text}}),
        flush=True,
    )


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM unwind the stack as ctrl-C does, so that temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
