"""Facts: what a model is, found out from its graph: stacks, the merge, sites and barriers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.attention import Attention, find_attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, infer_dims, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layers import Stack, find_stacks
from tokopt.ir.lengths import Length, product, quotient
from tokopt.ir.region import MERGES
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
    """A stack with its role.  ``role``: vision, decoder or text (numbered where several).

    ``relay`` is the stream row whose attention carries the flow (None: there is none);
    ``protected`` the learned rows in front; ``count`` the visual tokens; ``merge`` where the
    stack's sequence holds visual rows at run-time positions.
    """

    role: str
    stack: Stack
    sites: tuple[Site, ...]
    protected: int
    relay: int | None
    count: Length
    merge: Merge | None

    def site(self, name: str) -> Site | None:
        """Return the site of a name."""
        return next((s for s in self.sites if s.name == name), None)


@dataclass(frozen=True)
class Facts:
    """Everything the passes need to know of one graph."""

    exported: ExportedProgram
    dims: Dims
    dependence: Dependence
    attention: tuple[Attention, ...]
    stacks: tuple[TokenStack, ...]

    @property
    def consumer(self) -> TokenStack:
        """The stack that budgets count: the decoder, or the only stack with visual tokens."""
        for role in ("decoder", "vision"):
            alike = [s for s in self.stacks if s.role.rstrip("0123456789") == role]
            if alike:
                return next((s for s in alike if any(x.legal for x in s.sites)), alike[0])
        raise UnsupportedError(
            "no stack of attention layers over visual tokens was found",
            expected="attention layers joined by skip connections, fed by a floating-point input",
            hint="tokopt inspect prints every attention that was found",
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
    stacks = find_stacks(attention, dims, dependence)
    pixels = [n for n in _user_inputs(exported) if _is_float(n)]
    found: list[TokenStack] = []
    for stack in stacks:
        merge = _merge(stack, dims, dependence, pixels)
        seen = any(dependence.reaches(p, stack.layers[0].entry) for p in pixels)
        kind = "decoder" if merge is not None else "vision" if seen else "text"
        taken = sum(s.role.rstrip("0123456789") == kind for s in found)
        role = kind if not taken else f"{kind}{taken + 1}"
        found.append(_token_stack(role, stack, merge, exported.graph, dims))
    return Facts(exported, dims, dependence, tuple(attention), tuple(found))


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
            entries = product([a.length for a in dims.axes[source]])  # rows, or flattened
            others = [a.length for a in dims.axes[node] if locate(a, stack.stream) is None]
            count = quotient(entries, product(others))
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
    relay = -1 if merge is not None else 0 if protected else None
    places = [(str(layer.depth), layer.depth, layer.entry) for layer in stack.layers]
    if merge is None:
        places.append(("end", len(stack.layers), stack.end))
    sites = judge_sites(role, places, stack.dim, tokens, graph, dims, merge is not None)
    count = merge.count if merge is not None else tokens.root.length
    return TokenStack(role, stack, tuple(sites), protected, relay, count, merge)


def _is_factor(keys: Axis, stream: Axis) -> bool:
    """Return whether an attention's keys are all rows of a stream (of one item), no window."""
    place = locate(stream, keys)
    return place is not None and all(kind == "*" for kind, _, _ in place.path)
