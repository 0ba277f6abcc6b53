"""Observe: run a normalised program once and keep what selection methods read.

One pass of the interpreter over real inputs; nothing is rewritten.  Scores computed from an
observation are those of the original, unpruned model; calibration takes its entropies from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.axis import locate
from tokopt.ir.binding import bind
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.lengths import total
from tokopt.ir.sites import Site
from tokopt.ir.stream import as_rows, stack_lead
from tokopt.passes.methods.method import LayerTap, Taps
from tokopt.passes.methods.rows import relay_attention, share
from tokopt.passes.taps import TapRecipe, tap_recipe


@dataclass(frozen=True)
class StackObservation:
    """One stack on real data.

    ``layers`` are the taps of layers that attend everywhere (no row sees all rows of a windowed
    one); ``hidden`` ``[B, N, C]`` is the stream by site name, ``candidates`` bool ``[B, N]``.
    ``entropies`` is r_H of every layer: the entropy of the relay's head-mean attention over the n
    candidates, divided by ln n, averaged over the batch; 1 (no focus) for a windowed layer.
    """

    stack: TokenStack
    layers: tuple[LayerTap, ...]
    hidden: Mapping[str, Tensor]
    candidates: Tensor
    entropies: tuple[float, ...]

    def taps(
        self, site: str, keep: int, seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> Taps:
        """Return what a score placed at ``site`` as the only stage reads."""
        place = self.stack.site(site)
        if place is None:
            raise UnsupportedError(f"there is no site {site!r} in {self.stack.role}")
        return Taps(
            layers=[layer for layer in self.layers if layer.depth < place.depth],
            layer_count=len(self.stack.stack.layers),
            candidates=self.candidates,
            hidden=self.hidden[site],
            carried=None,
            relay=self.stack.relay,
            keep=keep,
            seed=seed,
            group=place.group,
            groups=self._groups(place) if place.scattered else None,
            text=None if self.stack.merge is None else ~self.candidates,
            entry=self.hidden.get(self.stack.sites[0].name),
            count=int(self.candidates[0].sum()),
            options=options or {},
        )

    def _groups(self, site: Site) -> Tensor:
        """Return the number of each row's group, int64 ``[B, N]``; 0 outside the token axis."""
        groups = torch.zeros_like(self.candidates, dtype=torch.int64)
        numbers = site.groups(groups.device).repeat(len(groups))
        return groups.masked_scatter(self.candidates, numbers)


@dataclass(frozen=True)
class Observation:
    """What was seen, per stack role."""

    stacks: Mapping[str, StackObservation]

    @property
    def entropies(self) -> Mapping[str, tuple[float, ...]]:
        """r_H per layer of every stack that has candidates, by role."""
        return {role: seen.entropies for role, seen in self.stacks.items()}


def observe(facts: Facts, inputs: Mapping[str, Tensor]) -> Observation:
    """Run the program of ``facts`` on ``inputs`` by name; raises ``InputError`` where they misfit.

    Stacks of text alone are left out: nothing in them is a candidate.
    """
    stacks = [stack for stack in facts.stacks if not stack.role.startswith("text")]
    wanted = {node for stack in stacks for node in _nodes(facts, stack)}
    recorder = _Recorder(facts.exported.graph_module, wanted)
    with torch.no_grad():
        recorder.run(*bind(facts.exported, inputs))
        return Observation({s.role: _stack(facts, s, recorder.seen) for s in stacks})


def average_entropies(observations: Sequence[Observation]) -> Mapping[str, tuple[float, ...]]:
    """Return r_H per role and layer, averaged over observations of equal weight."""
    roles = observations[0].entropies
    return {
        role: tuple(
            sum(column) / len(column)
            for column in zip(*(o.entropies[role] for o in observations), strict=True)
        )
        for role in roles
    }


class _Recorder(fx.Interpreter):
    """Run a graph and keep the values of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.wanted:
            self.seen[n] = result
        return result


def _recipes(facts: Facts, stack: TokenStack) -> list[TapRecipe]:
    lead = stack_lead(facts, stack)
    found = (tap_recipe(layer, facts.dims, lead) for layer in stack.stack.layers)
    return [recipe for recipe in found if recipe is not None]


def _nodes(facts: Facts, stack: TokenStack) -> list[fx.Node]:
    nodes = [site.value for site in stack.sites]
    if stack.merge is not None:
        nodes += [stack.merge.mask, *stack.merge.indices, stack.merge.node]
    return nodes + [node for recipe in _recipes(facts, stack) for node in recipe.nodes]


def _stack(facts: Facts, stack: TokenStack, seen: Mapping[fx.Node, Tensor]) -> StackObservation:
    hidden = {s.name: as_rows(seen[s.value], s.value, facts, stack) for s in stack.sites}
    recipes = _recipes(facts, stack)
    layers = tuple(recipe.build([seen[node] for node in recipe.nodes]) for recipe in recipes)
    items, rows, _ = next(iter(hidden.values())).shape
    candidates = _candidates(facts, stack, seen, rows).expand(items, rows)
    entropies = [1.0] * len(stack.stack.layers)
    for layer in layers:
        entropies[layer.depth] = _entropy(layer, candidates, stack.relay)
    return StackObservation(stack, layers, hidden, candidates, tuple(entropies))


def _candidates(
    facts: Facts, stack: TokenStack, seen: Mapping[fx.Node, Tensor], rows: int
) -> Tensor:
    """Return bool ``[B or 1, N]``: the merge's mask, or every row but the learned ones."""
    if stack.merge is not None:
        merge = stack.merge
        if not merge.indices:
            return as_rows(seen[merge.mask], merge.mask, facts, stack)[..., 0]
        written = torch.zeros_like(seen[merge.node], dtype=torch.bool)
        written[tuple(seen[index] for index in merge.indices)] = True
        return as_rows(written, merge.node, facts, stack)[..., 0]
    mask = torch.ones(1, rows, dtype=torch.bool)
    place = locate(stack.stack.stream, stack.sites[0].tokens)
    for kind, children, index in place.path if place is not None else ():
        if kind == "+":
            mask[:, : int(total([child.length for child in children[:index]]))] = False
            mask[:, rows - int(total([child.length for child in children[index + 1 :]])) :] = False
    return mask


def _entropy(layer: LayerTap, candidates: Tensor, relay: int | None) -> float:
    mass = share(relay_attention(layer, relay), candidates)
    entropy = torch.special.entr(mass).sum(1)
    counts = candidates.sum(1).tolist()
    ratios = [h / log(n) if n > 1 else 1.0 for h, n in zip(entropy.tolist(), counts, strict=True)]
    return sum(ratios) / len(ratios)
