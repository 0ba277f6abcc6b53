import dataclasses
from pathlib import Path
from types import ModuleType

import pytest

import tokopt.passes.methods
from tokopt.ir.errors import InputError, InternalError
from tokopt.passes.methods.about import NEEDS
from tokopt.passes.methods.registry import METHODS, collect, find_method

ROLES = {"vision", "decoder", "resampler", "text"}


def module(name: str, method: object) -> ModuleType:
    made = ModuleType(f"tokopt.passes.methods.{name}")
    made.METHOD = method  # type: ignore[attr-defined]
    return made


def test_every_file_with_a_method_is_found_under_its_name() -> None:
    folder = Path(next(iter(tokopt.passes.methods.__path__)))
    files = {f.stem for f in folder.glob("*.py") if "\nMETHOD = Method(" in f.read_text()}
    assert set(METHODS) == files
    assert {"vtc_cls", "fastv", "flowcut", "random", "stride"} <= files
    assert all(name == method.name for name, method in METHODS.items())


def test_a_method_not_named_like_its_file_is_refused() -> None:
    with pytest.raises(InternalError, match="not called like its file"):
        collect([module("slowv", METHODS["fastv"])])


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(InternalError, match="two methods"):
        collect([module("fastv", METHODS["fastv"]), module("fastv", METHODS["fastv"])])


def test_a_file_without_a_method_is_passed_over() -> None:
    assert dict(collect([module("rows", None)])) == {}


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        find_method("flowcutt")
    assert "did you mean flowcut?" in str(error.value)
    assert all(name in str(error.value) for name in METHODS)


def test_methods_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        METHODS["fastv"] = METHODS["flowcut"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["fastv"].name = "x"  # type: ignore[misc]


def test_every_method_says_what_it_is() -> None:
    for method in METHODS.values():
        assert method.paper and method.notes and method.roles <= ROLES
        assert method.needs <= {*NEEDS, "relay"} and method.calibrated <= method.roles
