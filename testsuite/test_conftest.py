from collections.abc import Callable
from types import SimpleNamespace

import pytest
from testsuite.conftest import file_check, pytest_collection_modifyitems


def test_check_lines_of_a_docstring_are_matched(check: Callable[[str], None]) -> None:
    """
    CHECK: %add_0
    CHECK-NEXT: return
    """
    check("%add_0 = x\nreturn %add_0\n")


def test_a_line_that_is_not_there_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)nobody.*the text"):
        file_check("%add_0 = x\n", "CHECK: nobody", "name")


def test_a_docstring_without_check_lines_fails() -> None:
    with pytest.raises(pytest.fail.Exception):
        file_check("%add_0 = x\n", "no lines", "name")


def test_files_with_a_slow_test_run_first_and_else_the_order_stays() -> None:
    def item(path: str, mark: str) -> SimpleNamespace:
        return SimpleNamespace(path=path, get_closest_marker=lambda name: name == mark or None)

    items = [item("a", "fast"), item("b", "fast"), item("b", "slow"), item("c", "slow")]
    pytest_collection_modifyitems(items)
    assert [one.path for one in items] == ["b", "b", "c", "a"]
