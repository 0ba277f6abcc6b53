"""Placed stages: a plan's stages with what they refer to in one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.blocks import SubBlock
from tokopt.ir.dims import Dims
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.layers import Layer
from tokopt.ir.places import image_of
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes.block_tap import blocks_of_plan
from tokopt.passes.methods.method import Method
from tokopt.passes.oracle.taps import tapped, watched
from tokopt.passes.picked import picked_of_plan
from tokopt.passes.quotas import images_of
from tokopt.passes.remembered import memory_name
from tokopt.passes.tower_tap import Feeder, feeders_of


@dataclass(frozen=True)
class Pool:
    """Rows of one item that compete, bool ``[N]``, and how many of them stay."""

    rows: Tensor
    keep: int


@dataclass(frozen=True)
class Choice:
    """What one stage did, over all ``N`` rows its stream has in the original, per item.

    ``alive``: rows left behind the stage.  ``candidates``: rows it chose among.  ``scores``: fp32,
    what it chose by (group means where rows go in groups); -inf for a NaN score, NaN at rows that
    were dead before.  ``raw``: the method's own score; ``passed`` what it passes on.  All
    ``[B, N]``.  ``pools``: per item the candidates that compete (all, or those of each image) and
    how many stay.  ``table``
    ``[groups, rows per group]``: rows that go together.
    """

    stage: Stage
    table: Tensor
    alive: Tensor
    candidates: Tensor
    scores: Tensor
    raw: Tensor
    pools: tuple[tuple[Pool, ...], ...]
    passed: Tensor | None = None


@dataclass(frozen=True)
class PlacedStage:
    """A stage at its site.

    ``before`` and ``same`` are the indices of the last earlier stage in the same stack, and of the
    last of the same method there (None: there is none).  ``layers`` are those the score may read:
    since ``same``, nearest last, layers without attention over the whole stream left out.
    ``number`` is the stage's place in the plan.  ``feeder`` is the tower that the method reads, if
    it does, off the values of ``tower``; ``ahead`` the layer behind the site, and ``blocks`` the
    sub-blocks by depth, where the method reads those.  ``end`` is where the rows that went come
    back, if they do.  ``sharing``: the number of images of which each keeps a share (None: all rows
    compete).  ``picked``: the numbers of the rows that are read by number.
    """

    stage: Stage
    stack: TokenStack
    site: Site
    method: Method
    before: int | None
    same: int | None
    layers: tuple[tuple[Layer, Attention], ...]
    feeder: Feeder | None = None
    tower: frozenset[fx.Node] = frozenset()
    ahead: tuple[Layer, Attention] | None = None
    end: Site | None = None
    number: int = 0
    sharing: int | None = None
    blocks: Mapping[int, tuple[SubBlock, ...]] = field(default_factory=dict)
    picked: tuple[fx.Node, ...] = ()

    @property
    def remembers(self) -> dict[str, str]:
        """The inputs that hold what the method remembers, each with the method's own name."""
        return {memory_name(self.number, name): name for name in self.method.state}

    def watched(self) -> set[fx.Node]:
        """Return the nodes whose values the stage needs."""
        merge = self.stack.merge
        nodes = set() if merge is None else {merge.mask, *merge.indices, merge.node}
        if self.feeder is not None:
            nodes |= self.tower
        nodes |= {node for own in self.blocks.values() for b in own for node in (b.input, b.output)}
        if "entry" in self.method.needs:
            nodes.add(self.stack.sites[0].value)
        return nodes.union(*(watched(attention) for _, attention in self.layers))

    @property
    def original(self) -> set[fx.Node]:
        """The nodes whose values in the original are needed."""
        return {*self.padding, *self.picked}

    @property
    def padding(self) -> set[fx.Node]:
        """The nodes whose values in the original tell padding, where the method asks for text."""
        if "text" not in self.method.needs or self.stack.merge is None:
            return set()
        first = self.stack.stack.layers[0].attention[0]
        return watched(first) | {first.node}


def tower_nodes(feeder: Feeder, dims: Dims) -> frozenset[fx.Node]:
    """Return the nodes whose values a tower's tap is made of."""
    tower = feeder[0]
    image = image_of(dims, tower.tokens)
    ends = (tower.stack.layers[0].attention[0], tower.stack.layers[-1].attention[0])
    return frozenset({*([] if image is None else [image]), *watched(ends[0]), *watched(ends[1])})


def place_stages(facts: Facts, plan: Plan, methods: Callable[[str], Method]) -> list[PlacedStage]:
    """Return the stages of a plan at their sites; ``UnsupportedError`` where one cannot be."""
    placed: list[PlacedStage] = []
    feeders, sharing = feeders_of(facts, plan, methods), images_of(facts, plan)
    blocks, picked = blocks_of_plan(facts, plan, methods), picked_of_plan(facts, plan, methods)
    for stage in plan.stages:
        stack, site = facts.find_site(stage.site)
        _check(stage, site)
        earlier = [i for i, other in enumerate(placed) if other.stack is stack]
        alike = [i for i in earlier if placed[i].stage.method == stage.method]
        start = placed[alike[-1]].site.depth if alike else 0
        layers = tuple(
            (layer, attention)
            for layer in stack.stack.layers
            if start <= layer.depth < site.depth
            if (attention := tapped(layer, site.tokens)) is not None
        )
        before, same = (found[-1] if found else None for found in (earlier, alike))
        method = methods(stage.method)
        end = None if stage.until is None else facts.find_site(stage.until)[1]
        feeder = feeders.get(stage.site)
        tower = tower_nodes(feeder, facts.dims) if feeder else frozenset()
        ahead = _ahead(stack, site) if "ahead" in method.wishes else None
        inside = dict(enumerate(blocks.get(stage.site, ())))
        read = {layer.depth: inside[layer.depth] for layer, _ in layers if inside}
        place = (stage, stack, site, method, before, same, layers, feeder, tower, ahead, end)
        numbers = picked.get(stage.site, ())
        placed.append(PlacedStage(*place, len(placed), sharing.get(stage.site), read, numbers))
    return placed


def _ahead(stack: TokenStack, site: Site) -> tuple[Layer, Attention] | None:
    layer = next((x for x in stack.stack.layers if x.depth == site.depth), None)
    attention = None if layer is None or stack.stack.cross else tapped(layer, site.tokens)
    return None if layer is None or attention is None else (layer, attention)


def _check(stage: Stage, site: Site) -> None:
    if site.barrier is not None:
        raise UnsupportedError(f"no stage can be placed at {site.name}: {site.barrier}")
    if stage.keep % site.group:
        raise InputError(
            f"keep = {stage.keep} at {site.name}",
            expected=f"a multiple of {site.group}: tokens go in groups there",
        )
