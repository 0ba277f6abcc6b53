"""Facts: what a model is, found out from its graph: stacks, the merge, sites and barriers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.arrival import Arrival, arrival
from tokopt.ir.attention import Attention, find_attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.cross import cross_stacks, find_readings
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, infer_dims, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layers import Stack, find_stacks
from tokopt.ir.lengths import Length, product, quotient
from tokopt.ir.region import MERGES, Region, plan_region
from tokopt.ir.sites import Site, judge_sites


@dataclass(frozen=True)
class Merge:
    """Where visual rows enter the text: ``node`` writes ``source`` where ``mask`` is true.

    ``count`` is the number of visual rows per batch item.
    """

    node: fx.Node
    mask: fx.Node
    source: fx.Node
    count: Length


@dataclass(frozen=True)
class TokenStack:
    """A stack with its role, numbered where several have one.

    ``role``: *vision* rows come from pixels; a *decoder* has rows written into its sequence by a
    merge, or reads them by cross-attention as it generates text; a *resampler* reads them by
    cross-attention on behalf of a later stack, or of no text at all; rows of a *latent* stack are
    learned; *text* is the rest.

    ``tokens`` is the axis of the rows that may leave; ``relay`` is the row whose attention carries
    the flow (None: there is none); ``protected`` the learned rows in front; ``count`` the visual
    tokens; ``merge`` where the stack's sequence holds visual rows at run-time positions.
    """

    role: str
    stack: Stack
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
        """The stack that budgets count: the decoder, or the only stack with visual tokens."""
        for role in ("decoder", "vision"):
            for stack in self.stacks:
                if stack.role == role:
                    return stack
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

    def _arrival(self, site: Site, fed: TokenStack) -> Arrival | None:
        graph, boundary = self.exported.graph, fed.boundary
        if boundary is None or not self.dependence.reaches(site.value, boundary):
            return None
        region = plan_region(graph, self.dims, site.value, site.tokens)
        if not isinstance(region, Region) or boundary not in (*region.merges, *region.short):
            return None
        target = boundary if fed.merge is None else fed.merge.source
        axes = self.dims.axes[boundary][:-1]
        items = product([a.length for a in axes if locate(a, fed.stack.stream) is None])
        return arrival(
            self.exported,
            self.dims,
            region,
            site.value,
            site.dim,
            site.tokens,
            target,
            self.dims.axes[boundary][-1].length,
            items,
            holes=boundary in region.merges,
        )

    def find_site(self, name: str) -> tuple[TokenStack, Site]:
        """Return a site by name; unknown names are an error that lists those there are."""
        for stack in self.stacks:
            site = stack.site(name)
            if site is not None:
                return stack, site
        known = ", ".join(s.name for stack in self.stacks for s in stack.sites)
        raise UnsupportedError(f"there is no site {name!r}", expected=f"one of {known}")


def analyse(exported: ExportedProgram) -> Facts:
    """Analyse a normalised program."""
    dims = infer_dims(exported)
    dependence = Dependence(exported.graph)
    attention = find_attention(exported.graph, dims)
    readings = find_readings(attention, dims, dependence)
    crossing = {id(reading.attention) for reading in readings}
    stacks = find_stacks([a for a in attention if id(a) not in crossing], dims, dependence)
    crosses = cross_stacks(readings, dims)
    inputs = Inputs.of(exported, dependence, crosses)
    found: list[TokenStack] = []
    for stack in sorted([*stacks, *crosses], key=lambda s: dependence.order[s.layers[0].join]):
        merge = None if stack.cross else _merge(stack, dims, dependence, inputs.pixels)
        kind = "decoder" if merge is not None else _kind(stack, stacks, inputs, dependence)
        taken = sum(s.role.rstrip("0123456789") == kind for s in found)
        role = kind if not taken else f"{kind}{taken + 1}"
        found.append(_token_stack(role, stack, merge, exported.graph, dims))
    return Facts(exported, dims, dependence, tuple(attention), tuple(found))


@dataclass(frozen=True)
class Inputs:
    """User inputs, and what is computed from pixels other than by reading them across."""

    every: list[fx.Node]
    pixels: list[fx.Node]
    visual: frozenset[fx.Node]

    @staticmethod
    def of(exported: ExportedProgram, dependence: Dependence, crosses: list[Stack]) -> Inputs:
        """Return the inputs of a program with these stacks of cross-attention."""
        every = _user_inputs(exported)
        pixels = [n for n in every if _is_float(n)]
        read = {stack.layers[0].entry for stack in crosses}
        return Inputs(every, pixels, frozenset(dependence.reached(pixels, read)))


def _kind(stack: Stack, stacks: list[Stack], inputs: Inputs, dependence: Dependence) -> str:
    """Return the role of a stack that nothing is merged into."""
    first, last = stack.layers[0], stack.layers[-1]
    if not stack.cross:
        if first.entry in inputs.visual:
            return "vision"
        given = any(dependence.reaches(i, first.entry) for i in inputs.every)
        return "text" if given else "latent"
    query, key = first.attention[0].query, first.attention[0].key
    prompts = [i for i in inputs.every if not dependence.reaches(i, key)]
    asked = any(dependence.reaches(i, query) for i in prompts)
    queries = first.attention[0].queries
    feeds = any(
        dependence.reaches(last.join, later.layers[0].entry)
        and locate(later.stream, queries) is None
        for later in stacks
    )
    return "decoder" if asked and not feeds else "resampler"


def _user_inputs(exported: ExportedProgram) -> list[fx.Node]:
    names = {
        s.arg.name
        for s in exported.graph_signature.input_specs
        if s.kind is InputKind.USER_INPUT and hasattr(s.arg, "name")
    }
    return [n for n in exported.graph.find_nodes(op="placeholder") if n.name in names]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return getattr(value, "is_floating_point", lambda: False)()


def _merge(stack: Stack, dims: Dims, dependence: Dependence, pixels: list[fx.Node]) -> Merge | None:
    """Return the scatter that writes image rows into a stack's sequence, if there is one."""
    entry = stack.layers[0].entry
    for node in dependence.order:
        if operator_name(node) not in MERGES or not dependence.reaches(node, entry):
            continue
        _, mask, source = (*node.all_input_nodes, None, None)[:3]
        if (
            source is None
            or mask is None
            or not any(locate(a, stack.stream) for a in dims.axes[node])
        ):
            continue
        if any(dependence.reaches(p, source) for p in pixels):
            width = dims.axes[node][-1].length  # the source may come flattened to elements
            rows = quotient(product([a.length for a in dims.axes[source]]), width)
            lead = product(
                [a.length for a in dims.axes[node][:-1] if locate(a, stack.stream) is None]
            )
            count = None if rows is None else quotient(rows, lead)
            if count is not None:
                return Merge(node, mask, source, count)
    return None


def _token_stack(
    role: str, stack: Stack, merge: Merge | None, graph: fx.Graph, dims: Dims
) -> TokenStack:
    keys = [a.keys.root for layer in stack.layers for a in layer.attention]
    whole = next((k for k in keys if _is_factor(k, stack.stream)), stack.stream.root)
    leaves = whole.leaves()
    learned = [leaf.learned for leaf in leaves]
    front = next((i for i, flag in enumerate(learned) if not flag), 0)
    body = [leaf for leaf in leaves if not leaf.learned]
    if merge is not None or not any(learned):
        tokens, protected = whole, 0
    elif len(body) == 1:
        tokens, protected = body[0].root, sum(int(x.length) for x in leaves[:front])
    else:
        tokens, protected = whole, 0
    class_row = 0 if protected and not stack.cross else None
    relay = -1 if role.startswith("decoder") else class_row
    places = [(str(layer.depth), layer.depth, layer.entry) for layer in stack.layers]
    if merge is None and not stack.cross:
        places.append(("end", len(stack.layers), stack.end))
    sites = judge_sites(role, places, stack.dim, tokens, graph, dims, merge is not None)
    count = merge.count if merge is not None else tokens.root.length
    return TokenStack(role, stack, tokens, tuple(sites), protected, relay, count, merge)


def _is_factor(keys: Axis, stream: Axis) -> bool:
    """Return whether an attention's keys are all rows of a stream (of one item), no window."""
    place = locate(stream, keys)
    return place is not None and all(kind == "*" for kind, _, _ in place.path)
