import io
import sys

import pytest
from rich.table import Table

from tokopt.cli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_a_stage_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with console.stage("normalizing"):
        pass
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("normalizing: done in 0.") and err.endswith(" s\n")


def test_a_stage_that_fails_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), console.stage("normalizing"):
        raise ValueError
    assert capsys.readouterr().err.startswith("normalizing: failed after ")


@pytest.mark.parametrize(
    ("variables", "live"), [({}, True), ({"CI": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_is_live_outside_ci(
    variables: dict[str, str], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert console.is_live() is live


def test_on_a_terminal_a_stage_ends_with_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.stage("normalizing"):
        pass
    assert "normalizing: done in 0." in terminal.getvalue().splitlines()[-1]


def test_plain_progress_is_said_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.track("search", 4) as advance:
        for done in range(1, 5):
            now[0] += 6.0
            advance(done, f"best {done / 10}")
    assert (
        capsys.readouterr().err == "search: 2/4, about 12 s left best 0.2\nsearch: 4/4 best 0.4\n"
    )


def test_progress_on_a_terminal_goes_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.track("search", 2) as advance:
        advance(1, "best 0.1")
        advance(2, "best 0.2")
    assert "search best 0.2" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_tables_are_plain_and_100_wide_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("name", "why")
    table.add_row("[bold]", "word " * 40)
    console.show(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 100 and all(line == line.rstrip() for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert any("[bold]" in line for line in lines), "names are no markup"


def test_no_color_is_honoured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.text import Text

    monkeypatch.setenv("TERM", "xterm-256color")
    shown = []
    for variable in (None, "1"):
        if variable is not None:
            monkeypatch.setenv("NO_COLOR", variable)
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        console.show(Text("legal", style="green"))
        shown.append(terminal.getvalue())
    assert "\x1b[32m" in shown[0] and "\x1b[32m" not in shown[1] and "legal" in shown[1]
