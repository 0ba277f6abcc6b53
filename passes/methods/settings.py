"""Settings: the options of a stage, read and checked."""

from __future__ import annotations

from tokopt.ir.errors import InputError
from tokopt.passes.methods.method import Taps


def choice(taps: Taps, method: str, option: str, *known: str) -> str:
    """Return one of the known words, the first where the option is not given."""
    value = taps.options.get(option, known[0])
    if value not in known:
        words = " or ".join(repr(word) for word in known)
        raise InputError(f"{method}: {option} = {value!r}", expected=words)
    return str(value)


def number(taps: Taps, method: str, option: str, default: float, low: float, high: float) -> float:
    """Return a number in ``low .. high``."""
    value = taps.options.get(option, default)
    if isinstance(value, str) or not low <= value <= high:
        raise InputError(
            f"{method}: {option} = {value!r}", expected=f"a number in {low:g} .. {high:g}"
        )
    return float(value)


def layer(taps: Taps, method: str, option: str, published: int, of: int) -> int:
    """Return a layer before the site: as asked, or published layer ``published`` of ``of``, scaled.

    Layers count from 0.  ``taps`` must have layers.
    """
    before = taps.layers[-1].depth + 1
    value = taps.options.get(option, "scaled")
    if value == "scaled":
        return min(round(published * before / of), before - 1)
    if not isinstance(value, int) or not 0 <= value < before:
        raise InputError(
            f"{method}: {option} = {value!r}", expected=f"'scaled', or a layer in 0 .. {before - 1}"
        )
    return value
