"""Facts: what a model is, found out from its graph: stacks, the merge, sites and barriers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.arrival import Arrival, arrival
from tokopt.ir.attention import Attention, find_attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.collector import uncollected
from tokopt.ir.cross import cross_stacks, find_readings
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, describe, infer_dims
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.given import Given
from tokopt.ir.holes import Barrier
from tokopt.ir.layers import Stack, find_stacks
from tokopt.ir.lengths import Length, is_longer, product
from tokopt.ir.merge import Merge, find_part, find_scatter
from tokopt.ir.places import Places, arrived_places, tower_places
from tokopt.ir.region import Region, plan_region
from tokopt.ir.roles import kind_of
from tokopt.ir.sites import Site, judge_sites
from tokopt.ir.spread import spread_stream


@dataclass(frozen=True)
class TokenStack:
    """A stack with its role, numbered where several have one.

    ``role``: *vision* rows come from pixels; a *decoder* has rows written into its sequence by a
    merge, or reads them by cross-attention as it generates text; a *resampler* reads them by
    cross-attention on behalf of a later stack, or of no text at all; rows of a *latent* stack are
    learned; *mixed* rows are of image and text, nobody knows which; *text* is the rest, also who
    reads such rows by cross-attention.

    ``rows`` is the axis of one item's rows, ``tokens`` that of those that may leave, ``protected``
    how many rows stand before them; ``relay`` is the row whose attention carries the flow (None:
    there is none); ``count`` the visual tokens; ``merge`` the scatter that writes visual rows into
    the sequence, at positions known at run time.
    """

    role: str
    stack: Stack
    rows: Axis
    tokens: Axis
    sites: tuple[Site, ...]
    protected: int
    relay: int | None
    count: Length
    merge: Merge | None

    def site(self, name: str) -> Site | None:
        """Return the site of a name."""
        return next((s for s in self.sites if s.name == name), None)

    @property
    def boundary(self) -> fx.Node | None:
        """The value in which rows of another stack arrive, if any do."""
        if self.stack.cross:
            return self.stack.layers[0].entry
        return None if self.merge is None else self.merge.node


@dataclass(frozen=True)
class Facts:
    """Everything the passes need to know of one graph."""

    exported: ExportedProgram
    dims: Dims
    dependence: Dependence
    attention: tuple[Attention, ...]
    stacks: tuple[TokenStack, ...]
    arrivals: dict[tuple[str, str], Arrival | None] = field(
        default_factory=dict, init=False, compare=False
    )

    @property
    def consumer(self) -> TokenStack:
        """The stack that budgets count: the decoder, or the only stack with visual tokens.

        In a model of text alone: who reads an encoder's rows by cross-attention, or the encoder.
        """
        for role in ("decoder", "vision"):
            alike = [s for s in self.stacks if s.role.rstrip("0123456789") == role]
            if alike:
                return next((s for s in alike if any(x.legal for x in s.sites)), alike[0])
        mixed = next((s for s in self.stacks if s.role.startswith("mixed")), None)
        if mixed is not None:
            raise UnsupportedError(
                "image and text rows are mixed so that the graph does not tell which are which",
                where=describe(mixed.stack.layers[0].entry),
                expected="image rows written among the text by masked_scatter or index_put, or "
                "joined with it by cat",
                hint="text = text.masked_scatter(mask[..., None], image) in the exported model",
            )
        spread = spread_stream(self.attention, self.dims, self.dependence)
        if spread is not None:
            shape = list(spread.meta["val"].shape)
            raise UnsupportedError(
                f"the rows between the layers lie on several dims: {shape}",
                where=describe(spread),
                expected="rows on one dim, [batch, rows, features]: tokens leave along one dim",
                hint="flatten height and width in front of the first layer: x.flatten(1, 2)",
            )
        texts = [s for s in self.stacks if s.role.startswith("text")]
        read = next((s for s in texts if s.stack.cross), None)
        if read is not None or (len(texts) == 1 == len(self.stacks)):
            return texts[0] if read is None else read
        raise UnsupportedError(
            "no stack of attention layers over visual tokens was found",
            expected="attention layers joined by skip connections, fed by a floating-point input",
            hint="tokopt inspect prints every attention that was found",
        )

    def arrival(self, site: Site, fed: TokenStack) -> Arrival | None:
        """Return which units dropped at a site would be missing in a stack, None where none would.

        Raises ``UnsupportedError`` where rows arrive in ways only known at run time.
        """
        key = (site.name, fed.role)
        if key not in self.arrivals:
            self.arrivals[key] = self._arrival(site, fed)
        return self.arrivals[key]

    def reach(self, site: Site) -> Tensor | None:
        """Return which units at a site of a tower ever arrive anywhere, bool ``[items, units]``.

        The items are those of one sequence that is fed.  None where all do, or none is fed.
        """
        fed = [self.arrival(site, stack) for stack in self.stacks if stack.boundary is not None]
        found = [arrival.reach for arrival in fed if arrival is not None]
        whole = torch.stack(found).any(0) if found else None
        return None if whole is None or bool(whole.all()) else whole

    def feeder(self, stack: TokenStack) -> tuple[TokenStack, Site, Arrival] | None:
        """Return the tower whose rows are merged into a stack, its last site, how they arrive."""
        for tower in self.stacks:
            for site in reversed(tower.sites if tower is not stack else ()):
                arrived = self.arrival(site, stack) if site.legal else None
                if arrived is not None:
                    return tower, site, arrived
        return None

    def places(self, stack: TokenStack) -> Places:
        """Return where in its image each visual row of a stack comes from.

        Raises ``UnsupportedError`` where the graph does not tell.
        """
        fed = self.feeder(stack) if stack.merge is not None else None
        found = tower_places(self.dims, stack.tokens if fed is None else fed[0].tokens)
        if fed is not None and found is not None:
            found = arrived_places(found, fed[1].groups(), fed[2].units)
        elif stack.merge is not None:
            found = None
        if found is None:
            raise UnsupportedError(
                f"the graph does not tell where in the image the rows of {stack.role} come from",
                expected="patches cut by a convolution or by views of the image",
                hint='state it in the plan\'s stage, grid = "24x24", if rows are in raster order',
            )
        return found

    def _arrival(self, site: Site, fed: TokenStack) -> Arrival | None:
        graph, boundary = self.exported.graph, fed.boundary
        if boundary is None or not self.dependence.reaches(site.value, boundary):
            return None
        region = plan_region(graph, self.dims, site.value, site.tokens, unit=site.unit)
        if not isinstance(region, Region) or boundary not in (*region.merges, *region.short):
            return None
        target = boundary if fed.merge is None else fed.merge.source
        axes = self.dims.axes[boundary][:-1]
        items = product([a.length for a in axes if locate(a, fed.stack.stream) is None])
        return arrival(
            self.exported,
            self.dims,
            region,
            site,
            target,
            self.dims.axes[boundary][-1].length,
            items,
            holes=boundary in region.merges,
            dim=None if fed.merge is not None else fed.stack.dim,
        )

    def find_site(self, name: str) -> tuple[TokenStack, Site]:
        """Return a site by name; unknown names are an error that lists those there are."""
        for stack in self.stacks:
            site = stack.site(name)
            if site is not None:
                return stack, site
        known = ", ".join(s.name for stack in self.stacks for s in stack.sites)
        raise UnsupportedError(f"there is no site {name!r}", expected=f"one of {known}")


@uncollected
def analyse(exported: ExportedProgram) -> Facts:
    """Analyse a normalised program."""
    dims = infer_dims(exported)
    dependence = Dependence(exported.graph)
    attention = find_attention(exported.graph, dims)
    readings = find_readings(attention, dims, dependence)
    crossing = {id(reading.attention) for reading in readings}
    stacks = find_stacks([a for a in attention if id(a) not in crossing], dims, dependence)
    crosses = cross_stacks(readings, dims)
    given = Given.of(exported, dependence, crosses)
    found: list[TokenStack] = []
    for stack in sorted([*stacks, *crosses], key=lambda s: dependence.order[s.layers[0].join]):
        merge = None if stack.cross else find_scatter(stack, dims, dependence, given)
        whole = _of_one_item(stack)
        part = None if stack.cross else find_part(stack, whole, dims, dependence, given)
        kind = kind_of(stack, stacks, dims, dependence, given)
        if merge is not None or (part is not None and _is_placed(part, whole)):
            kind = "decoder"
        taken = sum(s.role.rstrip("0123456789") == kind for s in found)
        role = kind if not taken else f"{kind}{taken + 1}"
        tokens, protected = _tokens(whole, merge, part if kind == "decoder" else None)
        axes = (whole, tokens, protected)
        found.append(_token_stack(role, stack, merge, *axes, exported.graph, dims))
    return Facts(exported, dims, dependence, tuple(attention), tuple(found))


def _of_one_item(stack: Stack) -> Axis:
    """Return the axis of one item's rows, where a stream flattens items and rows into one dim."""
    keys = [a.keys.root for layer in stack.layers for a in layer.attention]
    factors = [key for key in keys if _is_factor(key, stack.stream)]
    whole = factors[0] if factors else stack.stream.root
    for key in factors:  # not those of windows
        whole = key if is_longer(key.length, whole.length) else whole
    return whole


def _is_placed(part: Axis, whole: Axis) -> bool:
    """Return whether a part of a sequence begins at a constant row."""
    return all(isinstance(leaf.length, int) for leaf in _in_front(part, whole))


def _in_front(part: Axis, whole: Axis) -> list[Axis]:
    leaves, first = whole.leaves(), part.leaves()[0]
    return leaves[: leaves.index(first)] if first in leaves else []


def _tokens(whole: Axis, merge: Merge | None, part: Axis | None) -> tuple[Axis, int]:
    """Return the axis of the rows that may leave, and how many rows stand in front of it."""
    if part is None and merge is None:
        body = [leaf for leaf in whole.leaves() if not leaf.learned]
        part = body[0] if len(body) == 1 else None
    if part is None:
        return whole, 0
    return part.root, sum(int(leaf.length) for leaf in _in_front(part, whole))


def _token_stack(
    role: str,
    stack: Stack,
    merge: Merge | None,
    whole: Axis,
    tokens: Axis,
    protected: int,
    graph: fx.Graph,
    dims: Dims,
) -> TokenStack:
    class_row = 0 if protected and not stack.cross else None
    relay = -1 if role.startswith("decoder") else class_row
    if relay == -1 and not stack.cross and merge is None:
        ends = whole.leaves()[-1] is tokens.leaves()[-1]
        relay = None if ends else -1  # the last row is no word, but one that may leave
    places = [(str(layer.depth), layer.depth, layer.entry) for layer in stack.layers]
    if not role.startswith("decoder") and not stack.cross:
        places.append(("end", len(stack.layers), stack.end))
    if role.startswith("mixed"):
        places = []  # which rows are text is not known
    sites = judge_sites(role, places, stack.dim, tokens, graph, dims, merge is not None)
    count = merge.count if merge is not None else tokens.root.length
    if not isinstance(count, int) and not role.startswith("text"):
        counted = merge.node if merge is not None else stack.layers[0].entry
        barrier = Barrier(counted, f"has {count} visual rows, a number known only at run time")
        sites = [replace(site, barrier=site.barrier or barrier) for site in sites]
    return TokenStack(role, stack, whole, tokens, tuple(sites), protected, relay, count, merge)


def _is_factor(keys: Axis, stream: Axis) -> bool:
    """Return whether an attention's keys are all rows of a stream (of one item), no window."""
    place = locate(stream, keys)
    return place is not None and all(kind == "*" for kind, _, _ in place.path)
