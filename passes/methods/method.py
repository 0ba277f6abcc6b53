"""Method: a published way to choose visual tokens, as data.

A method = taps + score + schedule.  The score is one pure function of declared taps; the compiler
traces it into the graph, the oracle calls it on its own tensors, tests call it on random ones:
there is one definition.  Shapes: B batch, H heads, N rows of the stream (protected and text rows
included), d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.places import Places

GRID = "grid"
"""The stage option in which a person states the grid of patches, where no graph tells it."""

STACKS = "stacks"
"""The option of a method that has stages in a tower and in the decoder: ``both``, or ``one``."""

COSTS = ("O(N)", "O(N·K)", "O(N·K²)", "O(N²)", "O(N²·K)", "O(N³)")
"""How a method's own work grows with N visual rows there are and K that stay."""

ITEMS, ROWS, FEATURES = "items", "rows", "features"
"""Sizes in the shape of a state: items, visual rows of the original, features of the stream."""

CLASS_ROW, LAST_ROW = 0, -1
"""The two relays there are: the class token in front, the last token of the prompt (no padding)."""


@dataclass(frozen=True)
class LayerTap:
    """What can be read at one attention layer before the site.  All rows are of current length.

    ``depth`` counts layers of the stack from 0.  ``query`` is ``[B, H, N, d]``, ``key`` and
    ``value`` ``[B, H or fewer, N, d]``, with positions already applied; ``row(q)`` returns the
    post-softmax attention of query row ``q`` over all rows, fp32 ``[B, H, N]``; ``rows(at)`` that
    of the rows ``at`` ``[B, T]``, fp32 ``[B, H, T, N]``.  ``scale`` is the factor from
    ``query @ key`` to the layer's logits.  ``LAST_ROW`` is the last row that may read
    itself: padding may not.  ``last`` is its number per item, int64 ``[B]``; None: the last of all.
    ``blocks``: of each sub-block what it reads behind its norm and what it adds to the stream,
    ``[B, N, C]`` each; empty where the method does not need it.
    """

    depth: int
    query: Tensor
    key: Tensor
    value: Tensor
    row: Callable[[int], Tensor]
    scale: float
    last: Tensor | None = None
    rows: Callable[[Tensor], Tensor] | None = None
    blocks: tuple[tuple[Tensor, Tensor], ...] = ()

    def number(self, relay: int) -> int | Tensor:
        """Return the row that a relay is, of all items or ``[B]`` of each."""
        return self.last if relay == LAST_ROW and self.last is not None else relay


@dataclass(frozen=True)
class TowerTap:
    """The tower whose rows were written into a sequence, unpruned.

    ``layer`` is its last layer, over ``I`` images, crops or frames.  ``arrive(values, elsewhere)``
    takes a value per tower row, ``[I, N of the tower]``, to the rows of the sequence, ``[B, N]``:
    the mean where several rows became one, ``elsewhere`` at visual rows that come from no tower
    row (newlines), 0 at rows that are no candidates.  ``rows`` says which tower rows can arrive,
    bool ``[1, N of the tower]``.  ``patches`` are the grey values (mean over channels) that each
    row was made of, ``[I, N of the tower, P]``, 0 at learned rows; None where that is not known.
    ``first`` is its first layer, None where that attends in windows.
    """

    layer: LayerTap
    relay: int | None
    rows: Tensor
    arrive: Callable[[Tensor, float], Tensor]
    patches: Tensor | None = None
    first: LayerTap | None = None

    def want_patches(self, method: str) -> Tensor:
        """Return the pixels of each row, or refuse where the graph does not tell."""
        if self.patches is None:
            raise UnsupportedError(
                f"{method} reads the pixels of each patch, and the graph does not tell which are",
                expected="patches cut by a convolution whose kernel is its stride",
            )
        return self.patches


@dataclass(frozen=True)
class Taps:
    """What a score may read at a site.

    ``layers``: the layers since the previous stage of the same method in this stack (all layers
    before the site where there is none), nearest last.  ``candidates`` is bool ``[B, N]``: rows
    that may be dropped.  ``hidden`` ``[B, N, C]`` is the stream at the site.  ``carried`` is the
    score of the previous stage of the same method at the rows that stayed, ``[B, N]``, or None.
    ``relay`` is the row whose attention carries the flow (``CLASS_ROW``: the class token;
    ``LAST_ROW``: the last prompt token), None where the stack has none.  ``keep`` counts rows;
    where ``group`` is not 1 rows leave in whole groups of so many, judged by the mean of their
    scores: neighbours, or, where ``groups`` ``[B, N]`` is given, the candidates of one number in
    it.  ``text`` is bool ``[B, N]``: rows of a prompt that may not be dropped and are no padding;
    None where the method does not need it.  ``entry`` is the stream as it entered the stack, at the
    rows there are now, ``[B, N, C]``; None where the method does not need it.  ``places`` is where
    in its image each visual row comes from, ``[B, N]``, -1 at other rows; None where the method
    does not need it.  ``tower`` is the tower that feeds a decoder; None where the method does not
    need it.  ``ahead`` is the layer behind the site, as it would be over the rows there are now;
    None where the method does not wish it, or there is none.  ``passed`` is what the previous stage
    of the same method passed on of the rows that stayed, ``[B, N]``, or None.  ``count`` is the
    number of visual rows there are now.  ``options`` are the stage's own settings.  ``numbers`` is
    each row's number among the visual rows of the original, int64 ``[B, N]``, anything at other
    rows; None: the candidates are all there are.  ``state`` is what the method kept of earlier
    calls, by name (``Method.state``); without entry: nothing yet.  ``sizes`` is how many original
    rows each row stands for, fp32 ``[B, N]``; None where the method does not weigh rows.
    ``followed``: rows that someone else chose, bool ``[B, N]``; a greedy choice then goes their way
    where its gains are nearer than ``tie``, relative to the largest so far.  None: its own way.
    ``ranking``: of every visual row of the original, by number, how far from the end of an order
    it is that was measured beforehand, fp32 ``[n]``; None where there is none (``order.py``).
    ``picked``: rows that the program itself reads by number behind the site, bool ``[B, N]``; None
    where it reads none, or the method does not need it.
    """

    layers: Sequence[LayerTap]
    layer_count: int
    candidates: Tensor
    hidden: Tensor
    carried: Tensor | None
    relay: int | None
    keep: int
    seed: int
    group: int = 1
    groups: Tensor | None = None
    text: Tensor | None = None
    entry: Tensor | None = None
    places: Places | None = None
    tower: TowerTap | None = None
    ahead: LayerTap | None = None
    passed: Tensor | None = None
    count: int = field(kw_only=True)
    options: Mapping[str, int | float | str] = field(default_factory=dict)
    numbers: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Tensor | None = None
    followed: Tensor | None = None
    tie: float = 0.0
    ranking: Tensor | None = None
    picked: Tensor | None = None

    def want_sizes(self) -> Tensor:
        """Return how many rows each row stands for; only a method that weighs them has that."""
        assert self.sizes is not None
        return self.sizes

    def kept(self, name: str, *shape: int) -> Tensor:
        """Return a state of the method, zeros of a shape where there is none yet."""
        return self.state.get(name, self.hidden.new_zeros(shape, dtype=torch.float32))

    def want_text(self, method: str) -> Tensor:
        """Return which rows are text, or refuse where there is no prompt."""
        if self.text is None:
            raise UnsupportedError(
                f"{method} compares tokens with the prompt, and this stack has none",
                expected="a stage in a decoder",
            )
        return self.text

    def want_places(self, method: str) -> Places:
        """Return where each row comes from, or refuse where nobody knows."""
        if self.places is None:
            raise UnsupportedError(f"{method} needs to know where in the image rows come from")
        return self.places

    def want_tower(self, method: str) -> TowerTap:
        """Return the tower, or refuse where the stack has none."""
        if self.tower is None:
            raise UnsupportedError(f"{method} reads the tower that feeds a decoder")
        return self.tower

    def want_relay(self, method: str, instead: str) -> int:
        """Return the relay row, or refuse naming what is missing and what would do instead."""
        if self.relay is None:
            raise UnsupportedError(
                f"{method} needs a relay row, and this stack has none (no class token)",
                expected="a stack with a class token, or a decoder",
                hint=instead,
            )
        return self.relay

    def want_layers(self, method: str) -> Sequence[LayerTap]:
        """Return the layers before the site, or refuse where the site has none before it."""
        if not self.layers:
            raise UnsupportedError(
                f"{method} reads attention, and no layer lies before this site",
                hint="place the stage at a later layer",
            )
        return self.layers


Score = Callable[[Taps], Tensor]
"""``taps -> [B, N]`` fp32, higher is kept; values at rows that are no candidates are ignored."""


Combine = Callable[[Taps, Tensor], Tensor]
"""``(taps, stay) -> [B, K, C]``: rows ``stay`` of ``hidden``, with what is folded into them.

``stay`` is int64 ``[B, K]``, ascending, protected and text rows included.  Every row keeps its
place and its position: a merged or recycled token stands where its representative stood.  Rows into
which nothing is folded come out as they went in, bit for bit.
"""


Weigh = Callable[[Taps, Tensor], Tensor]
"""``(taps, stay) -> [B, K]`` fp32: how many original rows each row that stays stands for.

From there on attention of the stack counts a key that often: the logarithm joins its logits.
"""


Remember = Callable[[Taps, Tensor], Mapping[str, Tensor]]
"""``(taps, stay) -> {name: state}``: every state of the method, for the next call.

``stay`` is as in ``Combine``.  The tensors are fp32 of the shapes that ``Method.state`` has.
"""


@dataclass(frozen=True)
class Setting:
    """What a schedule is made for: a stack of ``layers`` layers with ``count`` visual rows.

    ``keep`` rows are to remain after the last stage, a multiple of ``group``; ``role`` is the
    stack's role without number; ``consumer`` whether budgets count this stack's own layers;
    ``entropies`` the calibrated relay entropy ratio r_H of each layer where inputs were given;
    ``paired`` whether the method has stages in the tower in front of the stack as well.
    """

    role: str
    layers: int
    count: int
    keep: int
    group: int = 1
    consumer: bool = False
    entropies: tuple[float, ...] | None = None
    paired: bool = False


@dataclass(frozen=True)
class Placement:
    """A stage entering layer ``depth`` (``depth == layers``: the end of the stack)."""

    depth: int
    keep: int


@dataclass(frozen=True)
class Method:
    """One method: its name is its file's name.

    ``roles``: stacks it can be placed in.  ``schedule`` returns placements whose counts never grow
    with depth nor shrink when ``Setting.keep`` grows.  ``needs``: ``"layers"`` (attention layers
    before the site), ``"relay"`` (a relay row), ``"text"`` (which rows are text),
    ``"blocks"`` (inputs and outputs of each layer's sub-blocks), ``"entry"`` (the
    stream as it entered the stack), ``"places"`` (where in its image a row comes from),
    ``"tower"`` (the tower that feeds a decoder) and ``"picked"`` (rows read by number).
    ``wishes``: of these, what it reads where it is there (``"places"``, ``"tower"``,
    and ``"ahead"``: the layer behind the site).  ``asks``:
    what it needs as well where an option has a value.
    ``passes_on``: what a stage hands to the method's next one, of each row, besides its score.
    ``ordered``: whether its option ``order`` is to be filled in from calibration inputs.
    ``tower_rows``: how many rows its stages in the tower pass on to the decoder for which a setting
    is, where it is placed in both (``STACKS``); None: it is placed in one stack.
    ``empties``: whether a stage of it may leave no visual row, in a decoder, where text is left.
    ``calibrated``: roles in which the schedule reads ``Setting.entropies``.  ``options``: its
    settings and their defaults.  ``tunes``: of options, the values that a search may try besides
    the default.  ``combine``: what becomes of the rows that stay (merging,
    recycling); None: nothing.  ``weigh``: how many rows each of them stands for; None: one.
    ``licence``: that of the authors' code, which is never copied: what
    is here is written from the paper.  ``cost``: one of ``COSTS``.  ``state``: the shapes of what
    is kept from one call to the next, by name, in numbers and ``ITEMS``, ``ROWS``, ``FEATURES``;
    ``remember``: what becomes of it in a call.  ``square``: why it holds a value for every pair of
    visual rows; empty: it holds none.  None holds one for every pair of rows of a sequence.
    """

    name: str
    paper: str
    roles: frozenset[str]
    score: Score
    schedule: Callable[[Setting], tuple[Placement, ...]]
    needs: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()
    notes: str = ""
    combine: Combine | None = None
    weigh: Weigh | None = None
    options: Mapping[str, int | float | str] = field(default_factory=dict)
    tunes: Mapping[str, tuple[int | float | str, ...]] = field(default_factory=dict)
    wishes: frozenset[str] = frozenset()
    asks: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    tower_rows: Callable[[Setting], int] | None = None
    passes_on: Score | None = None
    empties: bool = False
    licence: str = ""
    cost: str = ""
    state: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    remember: Remember | None = None
    ordered: bool = False
    square: str = ""

    def needed(self, options: Mapping[str, int | float | str]) -> frozenset[str]:
        """Return what it needs under a stage's options."""
        more = (needs for (key, value), needs in self.asks.items() if options.get(key) == value)
        return self.needs.union(*more)
