import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from testsuite.cli import fake_command

from tokopt.cli.main import main
from tokopt.ir.errors import (
    BudgetError,
    GateError,
    InputError,
    InternalError,
    TokoptError,
    UnsupportedError,
)

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Run], None]:
    """Install a command; run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda run: fake_command.install(monkeypatch, run)


def raising(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


FOUR_PARTS = """\
error: no plan meets the budget
  where: budget 0.01
  expected: at least 0.02
  try: --budget 0.02
"""


@pytest.mark.parametrize(
    ("kind", "code"),
    [(GateError, 1), (InputError, 2), (UnsupportedError, 3), (BudgetError, 4)],
)
def test_an_error_for_the_user_is_four_parts_and_its_exit_code(
    kind: type[TokoptError],
    code: int,
    fake: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    error = kind(
        "no plan meets the budget",
        where="budget 0.01",
        expected="at least 0.02",
        hint="--budget 0.02",
    )
    fake(raising(error))
    assert main(["fake"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", FOUR_PARTS)
    assert list(tmp_path.iterdir()) == []


def test_with_json_an_error_is_one_object_on_stdout(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(raising(UnsupportedError("no rule", where="node x")))
    assert main(["fake", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema_version": 1,
        "error": {
            "kind": "UnsupportedError",
            "exit_code": 3,
            "what": "no rule",
            "where": "node x",
            "expected": None,
            "hint": None,
        },
    }
    assert out.count("\n") == 1 and err.startswith("error: no rule")


def test_usage_errors_are_json_too(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(lambda args: 0)
    assert main(["fake", "--json", "--keep-ratio", "much"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["exit_code"], error["hint"]) == (2, "tokopt fake --help")
    assert "keep-ratio" in error["what"]


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"], ["fake", "--keep", "1"]])
def test_a_wrong_command_line_is_exit_code_2(
    argv: list[str], fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(lambda args: 0)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "--help" in err


def test_the_commands_exit_code_is_the_process_exit_code(fake: Callable[[Run], None]) -> None:
    fake(lambda args: 1)
    assert main(["fake"]) == 1


def test_underscores_in_options_are_read_as_hyphens(fake: Callable[[Run], None]) -> None:
    seen = []
    fake(lambda args: seen.append((args.keep_ratio, args.words)) or 0)  # type: ignore[func-returns-value]
    main(["fake", "--keep_ratio=0.5", "a_b"])
    main(["fake", "--keep_ratio", "0.25", "--", "--a_b"])
    assert seen == [(0.5, ["a_b"]), (0.25, ["--a_b"])]


def test_a_bug_of_ours_leaves_a_crash_folder(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake(raising(ZeroDivisionError("of tokens")))
    assert main(["fake", "two words"]) == 5
    assert main(["fake"]) == 5
    err = capsys.readouterr().err
    assert "error: ZeroDivisionError: of tokens\n" in err and "Traceback" not in err
    assert f"report it with the folder {tmp_path / 'tokopt-crash-1'}\n" in err
    folder = tmp_path / "tokopt-crash-1"
    assert (folder / "argv.txt").read_text() == "tokopt fake 'two words'\n"
    assert "ZeroDivisionError: of tokens" in (folder / "traceback.txt").read_text()
    assert "in run" in (folder / "traceback.txt").read_text()
    assert json.loads((folder / "versions.json").read_text())["tokopt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokopt-crash-1", "tokopt-crash-2"]


def test_a_crash_in_a_pass_leaves_its_pipeline(fake: Callable[[Run], None], tmp_path: Path) -> None:
    from tokopt.ir.program import Program
    from tokopt.passes.crash import PassFault

    fake(raising(PassFault(InternalError("two masks"), Program({}), "normalize,select")))
    assert main(["fake"]) == 5
    assert (tmp_path / "tokopt-crash-1" / "pipeline.txt").read_text() == "normalize,select\n"


def test_where_nothing_can_be_written_a_crash_is_still_reported(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    fake(raising(ZeroDivisionError("of tokens")))
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["fake"]) == 5
    assert "error: ZeroDivisionError: of tokens" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EROFS])
def test_what_the_system_refuses_is_the_users_to_mend(
    number: int, fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake(raising(OSError(number, os.strerror(number), "model.pt2")))
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == f"error: {os.strerror(number)}\n  where: model.pt2\n"
    assert list(tmp_path.iterdir()) == []


def test_an_odd_system_error_is_our_bug(fake: Callable[[Run], None]) -> None:
    fake(raising(OSError(errno.EBADF, "bad file")))
    assert main(["fake"]) == 5


def test_a_package_that_is_missing_is_named(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(raising(ModuleNotFoundError("no", name="transformers")))
    assert main(["fake"]) == 2
    assert "the package transformers is not installed" in capsys.readouterr().err
    fake(raising(ModuleNotFoundError("no", name="tokopt.ir.nothing")))
    assert main(["fake"]) == 5


def test_no_memory_is_no_bug(fake: Callable[[Run], None]) -> None:
    fake(raising(MemoryError()))
    assert main(["fake"]) == 2


def test_ctrl_c_is_130_and_no_traceback(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(raising(KeyboardInterrupt()))
    assert main(["fake"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert main(["fake", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 130


def test_tracebacks_are_shown_on_request(
    fake: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKOPT_TRACEBACK", "1")
    fake(raising(InputError("no such site")))
    assert main(["fake"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_notes_of_an_error_are_shown(
    fake: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    error = InputError("no such site")
    error.add_note("the artifact is kept")
    fake(raising(error))
    main(["fake"])
    assert "  note: the artifact is kept\n" in capsys.readouterr().err


def test_the_signal_handler_is_put_back(fake: Callable[[Run], None]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    fake(lambda args: 0)
    main(["fake"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_main_runs_outside_the_main_thread(fake: Callable[[Run], None]) -> None:
    codes: list[int] = []
    fake(lambda args: 0)
    thread = threading.Thread(target=lambda: codes.append(main(["fake"])))
    thread.start()
    thread.join()
    assert codes == [0]


PROCESS = """
import sys, time, types
from tokopt.cli import commands
from tokopt.cli.main import main
def run(args):
    try:
        {body}
    finally:
        print("cleaned up", file=sys.stderr)
    return 0
def add_parser(subparsers):
    subparsers.add_parser("fake").set_defaults(run=run)
sys.modules["tokopt.cli.fake"] = types.SimpleNamespace(add_parser=add_parser)
commands.find_commands = lambda: {{"fake": ""}}
sys.exit(main(["fake"]))
"""


def started(body: str) -> subprocess.Popen[str]:
    """Start a process that can be interrupted: what a shell runs behind ``&`` ignores Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(body=body)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cleans_up_and_is_130(number: signal.Signals) -> None:
    process = started("print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - start < 30
    assert err == "cleaned up\ninterrupted\n"


@pytest.mark.parametrize("amount", [1, 100_000])
def test_a_reader_that_went_away_is_141_and_silent(amount: int) -> None:
    body = "print('ready', flush=True); sys.stdin.readline(); "
    with started(body + f"[print('x' * 100) for _ in range({amount})]") as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stderr.read() == "cleaned up\n"
        assert process.wait(timeout=30) == 141


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    heavy = ["torch", "numpy", "sympy", "networkx", "onnx", "onnxruntime", "transformers", "rich"]
    text = (
        "import sys; from tokopt.cli.main import main; code = main([sys.argv[1]]); "
        f"print('heavy:', *(m for m in {heavy} if m in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, option],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == "heavy:"
