"""Ahead: the attention of the layer behind a site, over the rows that are there before the cut.

Some methods judge rows by how the *next* layer would look at them.  That layer's queries and keys
are made of the stream at the site, so what computes them is copied: the copies read the whole
stream, the originals are shortened with the rest.  Sound because a copy is a call with the same
operands; whatever does not depend on the stream (masks, rotary tables) is moved up and shared.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from tokopt.ir.axis import Axis
from tokopt.ir.facts import TokenStack
from tokopt.ir.sites import Site
from tokopt.passes.methods.method import LayerTap, Method
from tokopt.passes.operands import Given, Operands
from tokopt.passes.taps import tap_recipe
from tokopt.passes.workspace import Workspace


def read_ahead(
    work: Workspace,
    operands: Operands,
    stack: TokenStack,
    site: Site,
    method: Method,
    lead: tuple[Axis, ...],
) -> Callable[[Given], LayerTap | None]:
    """Return how to make the tap of the layer behind a site; None where there is none to read.

    None as well where the method does not wish it.
    """
    layers = stack.stack.layers
    if "ahead" not in method.wishes or site.depth >= len(layers) or stack.stack.cross:
        return lambda given: None
    recipe = tap_recipe(layers[site.depth], work.facts.dims, lead)
    if recipe is None:
        return lambda given: None
    found = recipe
    values = operands.slots(_copied(work, recipe.nodes, site.value))
    return lambda given: found.build(values(given))


def _copied(work: Workspace, wanted: list[fx.Node], value: fx.Node) -> list[fx.Node]:
    """Insert copies of what ``wanted`` are made of downstream of ``value``; return theirs."""
    below = {value}
    for node in work.graph.nodes:
        if not below.isdisjoint(node.all_input_nodes):
            below.add(node)
    needed, waiting = set(), list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes if node in below and node is not value else ()
    for node in needed - below:
        work.hoist(node, value)
    copies: dict[fx.Node, fx.Node] = {}
    for node in [n for n in work.graph.nodes if n in needed & below and n is not value]:
        with work.after(value):
            copies[node] = work.graph.node_copy(node, lambda n: copies.get(n, n))
        copies[node].meta = {"val": node.meta["val"]}
    return [copies.get(node, node) for node in wanted]
