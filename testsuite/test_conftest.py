from collections.abc import Callable

import pytest
from testsuite.conftest import file_check


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
