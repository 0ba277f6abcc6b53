import importlib
import re
from pathlib import Path

import pytest
from testsuite.cli import fake_command

import tokopt
from tokopt.cli.commands import find_commands, make_parser
from tokopt.cli.main import main
from tokopt.cli.versions import versions


def test_every_command_is_listed_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = find_commands()
    assert {"inspect", "opt"} <= found.keys()
    assert all(found.values()), "the docstring of a command begins with ``tokopt name``: what"
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, line in found.items():
        assert f"{name} {line}" in shown


@pytest.mark.parametrize("name", find_commands())
def test_a_command_is_called_like_its_file_and_documents_itself(name: str) -> None:
    module = importlib.import_module(f"tokopt.cli.{name.replace('-', '_')}")
    assert module.__doc__ is not None and module.__doc__.startswith(f"``tokopt {name}``: ")
    parser = make_parser([name])._subparsers
    assert parser is not None
    (action,) = parser._group_actions
    command = action.choices[name]  # type: ignore[call-overload,index]
    assert command.get_default("run") is module.run
    options = {option for a in command._actions for option in a.option_strings}
    assert "--json" in options
    assert not any("_" in option for option in options)
    assert command.description


def test_only_the_module_of_the_command_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command.install(monkeypatch, lambda args: 0)
    monkeypatch.setattr(
        "tokopt.cli.commands.find_commands", lambda: {"fake": "made up", "not-there": "missing"}
    )
    assert main(["fake"]) == 0


def test_version_says_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() >= {"tokopt", "path", "python", "torch", "onnxruntime"}
    assert lines == versions()
    import torch

    assert lines["torch"] == torch.__version__


def test_help_lists_every_variable_that_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(tokopt.__file__).parent
    sources = [
        p.read_text() for layer in ("ir", "passes", "cli") for p in (root / layer).rglob("*.py")
    ]
    read = {name for text in sources for name in re.findall(r'"(TOKOPT_[A-Z_]+)"', text)}
    main(["--help"])
    shown = set(re.findall(r"TOKOPT_[A-Z_]+", capsys.readouterr().out))
    assert "TOKOPT_DUMP" in read and read == shown
