"""The exception family: what is wrong, where, what was expected, what to try; and the exit code."""

from __future__ import annotations

from typing import ClassVar


class TokoptError(Exception):
    """An error a user can read: four short parts instead of a traceback.

    ``what`` says what is wrong, ``where`` names the file, node, module path or user's line,
    ``expected`` what tokopt needed, ``hint`` what to try next.  ``exit_code`` is the process's
    exit code when the error reaches the command line.
    """

    exit_code: ClassVar[int] = 5

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.expected, self.hint = what, where, expected, hint

    def __str__(self) -> str:
        parts = [("where", self.where), ("expected", self.expected), ("try", self.hint)]
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in parts if text)])


class GateError(TokoptError):
    """A verification gate failed; the artifact, if any, is kept and marked.  Exit code 1."""

    exit_code = 1


class InputError(TokoptError):
    """The user's file, option or data is wrong.  Exit code 2."""

    exit_code = 2


class UnsupportedError(TokoptError):
    """The graph holds something tokopt has no rule for, or a site is not legal.  Exit code 3."""

    exit_code = 3


class BudgetError(TokoptError):
    """No plan meets the budget; the message names the nearest that does.  Exit code 4."""

    exit_code = 4


class InternalError(TokoptError):
    """Our bug.  Exit code 5."""

    exit_code = 5
