"""Laws every method obeys, asked of every method in the library."""

import dataclasses
import functools
import inspect
import sys

import pytest
import torch
from testsuite.exhaustive import first_of
from testsuite.passes.methods.drawn_taps import PREFIX, blocks, drawn_taps, tower_of
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tokopt.passes.methods.greedy import loop
from tokopt.passes.methods.method import FEATURES, ITEMS, ROWS, LayerTap, Method, Taps, TowerTap
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.methods.rows import attention_row, attention_rows

CASES = [
    (name, role, relay)
    for name, method in METHODS.items()
    for role in sorted(method.roles)
    for relay in (0, None)
    if not (role == "decoder" and relay == 0)
    if not (role == "vision" and relay is None and "relay" in method.needs)
]
READS_POSITION = {
    "stc",
    "random",
    "stride",
    "visionzip",
    "downsample",
    "vflowopt",
    "hiprune",
    "holov",
    "tome",
    "hired",
    "visiondrop",
    "follow_the_flow",
}
CARRIES_TEXT = {"sparsevlm"}
"""Methods whose score at text rows says which of them rate."""
every_case = pytest.mark.parametrize(("name", "role", "relay"), CASES)


def score(name: str, taps: Taps) -> Tensor:
    return METHODS[name].score(taps)


@every_case
def test_scores_are_finite_fp32_one_per_row(name: str, role: str, relay: int | None) -> None:
    for carried in (False, True):
        taps = drawn_taps(role, relay=relay, carried=carried)
        found = score(name, taps)
        assert found.dtype == torch.float32 and found.shape == taps.candidates.shape
        assert bool(found.isfinite().all())


@every_case
def test_half_precision_taps_give_fp32_scores(name: str, role: str, relay: int | None) -> None:
    taps = drawn_taps(role, relay=relay)
    halves = [
        dataclasses.replace(t, query=t.query.half(), key=t.key.half(), value=t.value.half())
        for t in taps.layers
    ]
    found = score(name, dataclasses.replace(taps, layers=halves, hidden=taps.hidden.half()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, score(name, taps), rtol=2e-2, atol=2e-2)


@every_case
def test_scores_are_deterministic(name: str, role: str, relay: int | None) -> None:
    first, second = (score(name, drawn_taps(role, relay=relay)) for _ in range(2))
    assert torch.equal(first, second)


@every_case
def test_items_of_a_batch_do_not_see_each_other(name: str, role: str, relay: int | None) -> None:
    taps = drawn_taps(role, batch=3, relay=relay, carried=True)
    together = score(name, taps)
    for item in range(3):
        alone = score(name, take(taps, item))
        torch.testing.assert_close(alone[0], together[item], rtol=1e-5, atol=1e-6)


def take(taps: Taps, item: int) -> Taps:
    one = slice(item, item + 1)
    return dataclasses.replace(
        taps,
        layers=[
            LayerTap(
                t.depth,
                t.query[one],
                t.key[one],
                t.value[one],
                _only(t.row, one),
                t.scale,
                rows=functools.partial(_only_rows, t, item, len(taps.hidden)),
                blocks=blocks(t.query[one], t.key[one], t.value[one]),
            )
            for t in taps.layers
        ],
        candidates=taps.candidates[one],
        hidden=taps.hidden[one],
        carried=None if taps.carried is None else taps.carried[one],
        text=None if taps.text is None else taps.text[one],
        entry=None if taps.entry is None else taps.entry[one],
        sizes=None if taps.sizes is None else taps.sizes[one],
        places=None if taps.places is None else taps.places.seen(taps.places.table[one]),
        tower=None if taps.tower is None else _tower(taps, item, len(taps.hidden)),
    )


def _tower(taps: Taps, item: int, batch: int) -> TowerTap:
    assert taps.tower is not None and taps.tower.patches is not None
    one, layer = slice(item, item + 1), taps.tower.layer
    alone = dataclasses.replace(
        layer,
        query=layer.query[one],
        key=layer.key[one],
        value=layer.value[one],
        row=_only(layer.row, one),
        rows=functools.partial(_only_rows, layer, item, batch),
    )
    return tower_of(alone, taps.candidates[one], taps.tower.patches[one])


def _only(row, one: slice):  # type: ignore[no-untyped-def]
    return lambda number: row(number)[one]


def _only_rows(tap: LayerTap, item: int, batch: int, at: Tensor) -> Tensor:
    assert tap.rows is not None
    return tap.rows(at.expand(batch, -1))[item : item + 1]


@pytest.mark.parametrize(
    ("name", "role", "relay"), [case for case in CASES if case[0] not in READS_POSITION]
)
def test_moving_candidates_moves_their_scores(name: str, role: str, relay: int | None) -> None:
    taps = drawn_taps(role, batch=1, relay=relay, carried=True)
    order = torch.arange(14)
    inside = taps.candidates[0].nonzero()[:, 0]
    order[inside] = inside[torch.randperm(len(inside), generator=torch.Generator().manual_seed(3))]
    assert not torch.equal(order, torch.arange(14))
    before = score(name, taps)
    after = score(name, permuted(taps, order))
    torch.testing.assert_close(after[0, inside], before[0, order[inside]], rtol=1e-5, atol=1e-6)


def permuted(taps: Taps, order: Tensor) -> Taps:
    assert taps.carried is not None
    return dataclasses.replace(
        taps,
        layers=[
            LayerTap(
                t.depth,
                t.query[:, :, order],
                t.key[:, :, order],
                t.value[:, :, order],
                functools.partial(_permuted_row, t, order),
                t.scale,
                rows=functools.partial(_permuted_rows, t, order),
                blocks=blocks(t.query[:, :, order], t.key[:, :, order], t.value[:, :, order]),
            )
            for t in taps.layers
        ],
        hidden=taps.hidden[:, order],
        carried=taps.carried[:, order],
        entry=None if taps.entry is None else taps.entry[:, order],
        places=None if taps.places is None else taps.places.seen(taps.places.table[:, order]),
        tower=None
        if taps.tower is None
        else dataclasses.replace(
            taps.tower, arrive=functools.partial(_permuted_arrival, taps.tower, order)
        ),
    )


def _permuted_row(tap: LayerTap, order: Tensor, number: int) -> Tensor:
    return tap.row(int(order[number]))[:, :, order]


def _permuted_arrival(tower: TowerTap, order: Tensor, values: Tensor, elsewhere: float) -> Tensor:
    return tower.arrive(values, elsewhere)[:, order]


def _permuted_rows(tap: LayerTap, order: Tensor, at: Tensor) -> Tensor:
    assert tap.rows is not None
    return tap.rows(order[at])[..., order]


@pytest.mark.parametrize("name", ["random", "stride"])
def test_a_control_reads_nothing_but_candidates(name: str) -> None:
    first, second = drawn_taps(seed=1), drawn_taps(seed=2)
    second = dataclasses.replace(second, seed=1)
    assert torch.equal(score(name, first), score(name, second))
    blind = dataclasses.replace(first, layers=[])
    assert torch.equal(score(name, first), score(name, blind))


@pytest.mark.parametrize(("name", "role", "relay"), first_of(CASES, 3))
def test_a_score_traces_with_free_sizes_and_has_no_square(
    name: str, role: str, relay: int | None
) -> None:
    """Traced at one size, the graph is right at another; no value has two dims of N rows.

    That is so of what a stage computes besides, too: what it folds, weighs, passes on, remembers.
    """
    taps, method = drawn_taps(role, relay=relay, layers=2, carried=True), METHODS[name]

    def flat(taps: Taps) -> list[Tensor]:
        operands = [x for t in taps.layers for x in (t.query, t.key, t.value)]
        assert taps.carried is not None and taps.entry is not None
        text = taps.candidates if taps.text is None else taps.text
        assert taps.places is not None
        assert taps.tower is None or taps.tower.patches is not None
        above = [] if taps.tower is None else [taps.tower.layer, taps.tower.patches]
        tower = [x for t in above[:1] for x in (t.query, t.key, t.value)] + above[1:]
        first = [taps.candidates, taps.hidden, taps.carried, taps.entry, text]
        return [*operands, *first, taps.places.table, *tower]

    def at(*operands: Tensor) -> Taps:
        layers = [rebuilt(d, *operands[3 * d : 3 * d + 3]) for d in range(2)]
        candidates, hidden, carried, entry, text, where, *tower = operands[6:]
        return dataclasses.replace(
            taps,
            layers=layers,
            candidates=candidates,
            hidden=hidden,
            carried=carried,
            entry=entry,
            sizes=1 + carried.abs().ceil(),
            text=None if taps.text is None else text,
            places=None if taps.places is None else taps.places.seen(where),
            tower=tower_of(rebuilt(0, *tower[:3]), candidates, tower[3]) if tower else None,
        )

    stages = "carried" in inspect.getsource(sys.modules[method.score.__module__])

    def traced(*operands: Tensor) -> list[Tensor]:
        now = at(*operands)
        first = [score(name, dataclasses.replace(now, carried=None))] if stages else []
        return [score(name, now), *first, *made_besides(method, now)]

    graph = make_fx(traced, tracing_mode="symbolic")(*flat(taps))
    sizes = ((2, 14), (3, 14) if role == "vision" else (3, 15))  # visual rows are as many
    for batch, rows in sizes:
        other = drawn_taps(role, batch=batch, rows=rows, relay=relay, layers=2, carried=True)
        there, expected = graph(*flat(other))[0], score(name, other)
        torch.testing.assert_close(there, expected, rtol=1e-5, atol=1e-6)
    found = squares(graph, graph.graph.find_nodes(op="placeholder")[6])
    assert not found
    assert not [n for n in graph.graph.nodes if "_local_scalar_dense" in str(n.target)]


def made_besides(method: Method, taps: Taps) -> list[Tensor]:
    """What a stage of a method computes beside its score, of the first rows that stay."""
    gone = taps.count - taps.keep
    stay = torch.arange(taps.candidates.shape[1], device=taps.hidden.device)[gone:]
    stay = stay.expand(taps.candidates.shape[0], -1)
    made = [f(taps, stay) for f in (method.combine, method.weigh) if f is not None]
    made += [] if method.passes_on is None else [method.passes_on(taps)]
    shapes = {ITEMS: taps.hidden.shape[0], ROWS: taps.count, FEATURES: taps.hidden.shape[2]}
    state = {
        key: taps.hidden.new_zeros([shapes[n] if isinstance(n, str) else n for n in shape])
        for key, shape in method.state.items()
    }
    if method.remember is not None:
        made += method.remember(dataclasses.replace(taps, state=state), stay).values()
    return made


def rebuilt(depth: int, query: Tensor, key: Tensor, value: Tensor) -> LayerTap:
    scale = 0.9 * 6**-0.5

    def row(number: int) -> Tensor:
        return attention_row(query, key, None, number, scale, False)

    def rows(at: Tensor) -> Tensor:
        return attention_rows(query, key, None, at, scale, False)

    inside = blocks(query, key, value)
    return LayerTap(depth, query, key, value, row, scale, rows=rows, blocks=inside)


def squares(graph: fx.GraphModule, mask: fx.Node) -> list[fx.Node]:
    rows = mask.meta["val"].shape[1].node.expr
    found = []
    bodies = [m for m in graph.modules() if isinstance(m, fx.GraphModule)]  # of loops, too
    for node in (node for body in bodies for node in body.graph.nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            same = [s for s in value.shape if isinstance(s, torch.SymInt) and s.node.expr == rows]
            found += [node] if len(same) > 1 else []
    return found


def test_the_search_for_squares_finds_a_square() -> None:
    mask = torch.ones(2, 14, dtype=torch.bool)
    graph = make_fx(lambda m: m[:, None] & m[:, :, None], tracing_mode="symbolic")(mask)
    assert squares(graph, graph.graph.find_nodes(op="placeholder")[0])


def test_the_search_for_squares_looks_into_loops() -> None:
    def looped(mask: Tensor) -> Tensor:
        def step(seen: Tensor, number: Tensor) -> list[Tensor]:
            return [seen & (seen[:, None] & seen[:, :, None]).any(1)]

        return loop(step, [mask], torch.arange(2), [])[0]

    graph = make_fx(looped, tracing_mode="symbolic")(torch.ones(2, 14, dtype=torch.bool))
    assert squares(graph, graph.graph.find_nodes(op="placeholder")[0])


@pytest.mark.parametrize(
    ("name", "role", "relay"), [case for case in CASES if case[0] not in CARRIES_TEXT]
)
def test_protected_rows_do_not_change_by_carried_scores(
    name: str, role: str, relay: int | None
) -> None:
    """What was carried at rows that are no candidates never reaches a candidate's score."""
    taps = drawn_taps(role, relay=relay, carried=True)
    assert taps.carried is not None and PREFIX > 0
    other = taps.carried.masked_fill(~taps.candidates, 1e3)
    inside = taps.candidates
    changed = score(name, dataclasses.replace(taps, carried=other))
    assert torch.equal(changed[inside], score(name, taps)[inside])
