"""Layer: the formats of both sides of a layer, which must agree on the order of their rows.

A pooled format stores salient rows first, so keys and values of one layer are both stored by it or
neither is.  Where outliers make one side finer, the other leaves the pools with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokopt.ir.errors import InputError, InternalError
from tokopt.passes.kv.format import Format, Side
from tokopt.passes.kv.headroom import Chosen, chosen
from tokopt.passes.kv.samples import Samples

OTHER: Mapping[Side, Side] = {"key": "value", "value": "key"}


def chosen_layer(
    wanted: Mapping[Side, Format], samples: Mapping[Side, Samples]
) -> dict[Side, Chosen]:
    """Return the format of each side, calibrated, finer where outliers ask for that.

    Raises ``InputError`` where the wanted formats do not agree on the order of rows.
    """
    key, value = wanted["key"], wanted["value"]
    if not _same_order(key, value):
        raise InputError(
            f"keys in {key.name} and values in {value.name} do not lie in one order",
            expected="a format that stores salient rows apart for both sides, with the same "
            "settings, or for neither",
        )
    found = {side: chosen(wanted[side], side, samples[side]) for side in OTHER}
    for side, other in OTHER.items():
        format, beside = found[side].format, found[other].format
        if format.pooled and not _same_order(format, beside):
            finer = format.finer()
            if finer is None or finer.pooled:
                raise InternalError(f"{format.name} leads to no format of ordered rows")
            again = chosen(finer, side, samples[side])
            reason = f"the {other}s are in {beside.name}, whose rows lie in their own order: "
            note = reason + (again.note or f"{again.format.name} instead of {format.name}")
            found[side] = Chosen(again.format, again.constants, note)
    return found


def _same_order(first: Format, second: Format) -> bool:
    return first == second or not (first.pooled or second.pooled)
