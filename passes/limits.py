"""Limits: a budget of several numbers, every one of them a hard constraint.

``tokens``   mean share of the visual rows in the consumer's layers (DESIGN.md, section 5)
``kv``       bytes of the consumer's visual keys and values, against all rows in 16 bits: caches
             hold as many rows as their layer has, so in 16 bits it is what ``tokens`` is, and a
             format of fewer bits leaves room for more rows; rows that may wait in 16 bits are
             counted so
``flops``    operations of all products, the selector's own work included, against the original's
``latency``  seconds by the roofline of a device, the selector included
"""

from __future__ import annotations

from dataclasses import dataclass

from tokopt.ir.errors import InputError

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
KINDS = ("tokens", "kv", "flops", "latency")


@dataclass(frozen=True)
class Limits:
    """What may be spent at most, None where there is no limit.

    ``latency`` is a share of the original's where ``relative``, else seconds.
    """

    tokens: float | None = None
    kv: float | None = None
    flops: float | None = None
    latency: float | None = None
    relative: bool = True

    @property
    def given(self) -> dict[str, float]:
        """Return the limits there are, by kind."""
        found = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: value for kind, value in found.items() if value is not None}

    @property
    def rows(self) -> float:
        """Return the share of the rows that is left at most, whatever else is limited."""
        return self.tokens or 1.0


def parse_limits(text: str) -> Limits:
    """Read ``tokens=0.2,flops=0.3,latency=20ms``.  Raises ``InputError`` for anything else."""
    found: dict[str, float] = {}
    relative = True
    for term in text.split(","):
        kind, _, value = (part.strip() for part in term.partition("="))
        if kind not in KINDS or kind in found:
            what = "twice" if kind in found else "no budget"
            raise InputError(f"{kind!r} is {what} in {text!r}", expected=" or ".join(KINDS))
        unit = next((u for u in UNITS if value.endswith(u)), "") if kind == "latency" else ""
        try:
            found[kind] = float(value.removesuffix(unit)) * UNITS.get(unit, 1.0)
        except ValueError:
            raise InputError(f"{value!r} in {text!r}", expected=f"a number: {kind}=0.3") from None
        if not found[kind] > 0 or (not unit and found[kind] > 1):
            raise InputError(f"{term.strip()} in {text!r}", expected="a share in (0, 1]")
        relative = relative and not unit
    return Limits(**found, relative=relative)
