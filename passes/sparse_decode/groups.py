"""Groups: which layers of decode read all rows, which choose, and whose choice others follow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tokopt.ir.errors import InputError


@dataclass(frozen=True)
class Groups:
    """``full`` layers read all rows; ``select`` layers too, and choose; all others are sparse.

    A sparse layer follows the last choosing layer in front of it.  Raises ``InputError`` for
    layers that are not there, are named twice, or have none to follow.
    """

    layers: int
    full: tuple[int, ...]
    select: tuple[int, ...]

    def __post_init__(self) -> None:
        named = [*self.full, *self.select]
        for depth in named:
            if not 0 <= depth < self.layers or named.count(depth) > 1:
                raise InputError(
                    f"sparse decode names layer {depth} "
                    + ("twice" if named.count(depth) > 1 else "of a decode that has none such"),
                    expected=f"different layers from 0 to {self.layers - 1}",
                )
        if not self.select or len(named) == self.layers:
            raise InputError("no layer of decode would be sparse", expected="select and sparse")
        if self.sparse[0] < min(self.select):
            raise InputError(
                f"layer {self.sparse[0]} of decode would follow no choice",
                expected=f"full layers up to the first that selects, {min(self.select)}",
            )

    @property
    def sparse(self) -> tuple[int, ...]:
        """The layers that read chosen rows alone."""
        return tuple(d for d in range(self.layers) if d not in (*self.full, *self.select))

    @property
    def source(self) -> dict[int, int]:
        """The choosing layer of each sparse one."""
        return {depth: max(s for s in self.select if s < depth) for depth in self.sparse}

    def torn(self, breaks: Collection[int]) -> int | None:
        """Return the first sparse layer with fewer rows than the layer it follows, if any.

        ``breaks``: the layers in front of which rows are dropped.
        """
        pairs = self.source.items()
        return next((d for d, s in pairs if any(s < at <= d for at in breaks)), None)
