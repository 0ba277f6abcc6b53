"""main: the command line; what went wrong becomes one message and one exit code.

Exit codes: 0 done; 1 a gate failed; 2 usage or input; 3 graph not supported; 4 budget infeasible;
5 a bug of tokopt (``tokopt-crash-<n>/`` is written); 130 interrupted, by ctrl-C or SIGTERM; 141
the reader of stdout went away.  Messages go to stderr, results to stdout.  With ``--json`` stdout
holds exactly one JSON object: the result, or ``{"schema_version": 1, "error": {"kind", "exit_code",
"what", "where", "expected", "hint"}}``.  ``TOKOPT_TRACEBACK=1`` shows tracebacks.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from tokopt.cli.commands import make_parser, with_kebab_options
from tokopt.cli.console import say
from tokopt.cli.failure import as_tokopt_error, print_error, report
from tokopt.ir.collector import collect_seldom
from tokopt.ir.errors import InputError

INTERRUPTED, READER_GONE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; raises nothing but ``SystemExit`` of others."""
    words = with_kebab_options(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _quieten()
    collect_seldom()
    try:
        with _terminated_like_interrupted():
            code = _run(words)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        say("interrupted")
        if as_json:
            print_error("Interrupted", INTERRUPTED, InputError("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return READER_GONE
    except Exception as error:  # the last resort: everything unknown is our bug
        return report(as_tokopt_error(error), words, as_json)


def _run(words: Sequence[str]) -> int:
    try:
        args = make_parser(words).parse_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return int(args.run(args))


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere: Python flushes again at exit (its docs, on SIGPIPE)."""
    with suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quieten() -> None:
    """Keep libraries' advice and deprecations off the screen; write what stdout can."""
    if os.environ.get("TOKOPT_TRACEBACK") != "1":
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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
