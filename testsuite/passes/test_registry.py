import importlib
import inspect
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import tokopt.passes
from tokopt.ir.errors import InternalError
from tokopt.ir.program import Program
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.normalize import Normalize
from tokopt.passes.registry import collect, registered_passes

PASS = """
from dataclasses import dataclass
from tokopt.passes.base import Pass, PassResult
{decorator}
class {name}(Pass):
    def run(self, program):
        return PassResult(program, False)
"""


def module(
    name: str, pass_name: str, decorator: str = "@dataclass(frozen=True)"
) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(PASS.format(name=pass_name, decorator=decorator), made.__dict__)
    return made


def test_normalize_is_registered_under_its_name() -> None:
    assert registered_passes()["normalize"] is Normalize


def test_every_pass_of_the_folder_is_registered() -> None:
    written = {
        path.stem
        for path in Path(tokopt.passes.__path__[0]).glob("*.py")
        if "(Pass):" in path.read_text()
    }
    assert written == {kind.__module__.rpartition(".")[2] for kind in registered_passes().values()}


def test_every_pass_says_what_it_does() -> None:
    for kind in registered_passes().values():
        assert inspect.getdoc(kind) and inspect.getdoc(importlib.import_module(kind.__module__))


def test_a_pass_is_found_where_it_is_defined_and_not_where_it_is_imported() -> None:
    one, other = module("one", "Fold"), module("other", "Prune")
    other.Fold = one.Fold  # type: ignore[attr-defined]
    assert list(collect([other, one])) == ["fold", "prune"]


def test_two_passes_of_one_name_are_refused() -> None:
    with pytest.raises(InternalError, match="two passes are called 'fold'"):
        collect([module("one", "Fold"), module("other", "Fold")])


@pytest.mark.parametrize("decorator", ["", "@dataclass"])
def test_a_pass_that_is_no_frozen_dataclass_is_refused(decorator: str) -> None:
    with pytest.raises(InternalError, match="Fold is no frozen dataclass"):
        collect([module("one", "Fold", decorator)])


def test_a_subclass_without_its_own_decorator_is_refused() -> None:
    made = module("one", "Fold")

    class Refold(made.Fold):  # type: ignore[misc,name-defined]
        __module__ = "one"

    made.Refold = Refold  # type: ignore[attr-defined]
    with pytest.raises(InternalError, match="Refold is no frozen dataclass"):
        collect([made])


def test_an_abstract_base_is_no_pass() -> None:
    made = module("one", "Fold")

    @dataclass(frozen=True)
    class Family(Pass):
        __module__ = "one"

    made.Family = Family  # type: ignore[attr-defined]
    assert list(collect([made])) == ["fold"]
    with pytest.raises(TypeError):
        Family()  # type: ignore[abstract]


def test_a_concrete_pass_can_be_made(tmp_path: Path) -> None:
    kind = collect([module("one", "Fold")])["fold"]
    assert isinstance(kind().run(Program({})), PassResult)
