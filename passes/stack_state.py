"""Stack state: what earlier cuts left of a stack while a plan is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from tokopt.ir.arrival import Arrival
from tokopt.ir.blocks import SubBlock
from tokopt.ir.facts import TokenStack
from tokopt.ir.places import Places
from tokopt.ir.sites import Site
from tokopt.passes.workspace import Count


@dataclass
class StackState:
    """What earlier cuts left of a stack: row counts, who is visual, where rows came from.

    ``rows`` counts the token axis, ``visual`` the visual rows in it; ``mask`` (decoders) is bool
    ``[B, N]``, the visual rows that may go; ``origin`` int64 ``[B, N]`` original stream rows;
    ``carried`` the last score and the depth it was taken at, ``passed`` what it passed on, by
    method.  ``cuts``: per stage the depth it enters and its index, int64 ``[B, K]`` over the stream
    rows before it.  By site, all found before anything was rewritten: ``reach``, which units ever
    arrive anywhere (``Facts.reach``); ``places``, where its rows come from; ``feeders``, the tower
    that a method reads; ``blocks``, the sub-blocks of each layer; ``images``, the number of images
    of which each keeps a share; ``picked``, the numbers of the rows read by number.
    ``entry``: the stream as the stack's first layer reads it;
    ``written`` (decoders): the visual rows as the merge wrote them.  ``sizes``: how many original
    rows each row stands for, fp32 ``[B, N]``; None until a method merges rows that weigh.
    """

    rows: Count
    visual: int
    mask: fx.Node | None = None
    origin: fx.Node | None = None
    carried: dict[str, tuple[fx.Node, int]] = field(default_factory=dict)
    passed: dict[str, fx.Node] = field(default_factory=dict)
    cuts: list[tuple[int, fx.Node]] = field(default_factory=list)
    reach: Mapping[str, Tensor | None] = field(default_factory=dict)
    places: Mapping[str, Places] = field(default_factory=dict)
    feeders: Mapping[str, tuple[TokenStack, Site, Arrival]] = field(default_factory=dict)
    blocks: Mapping[str, tuple[tuple[SubBlock, ...], ...]] = field(default_factory=dict)
    entry: fx.Node | None = None
    written: fx.Node | None = None
    sizes: fx.Node | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    picked: Mapping[str, tuple[fx.Node, ...]] = field(default_factory=dict)
