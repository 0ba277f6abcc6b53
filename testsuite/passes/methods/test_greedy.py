"""The loop: what every greedy method gets from it, and that it goes where programs go."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from testsuite.passes.methods.chosen import in_groups, of_means, order_of, with_rows
from testsuite.passes.methods.drawn_taps import candidates, draw, drawn_taps
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.ir.text import print_graph
from tokopt.passes.methods.greedy import greedy
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.registry import METHODS
from tokopt.targets.registry import find

REASON = find("aotinductor").available()
GREEDY = ("catp", "cdpruner", "dart", "divprune", "mmtok", "todre")
every_method = pytest.mark.parametrize("name", GREEDY)


def by_size(taps: Taps) -> Tensor:
    """Gain: the first feature, halved for all at every step."""

    def gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
        return given[0] * state[0]

    def update(state: Sequence[Tensor], given: Sequence[Tensor], _: Tensor) -> list[Tensor]:
        return [state[0] / 2]

    return greedy(taps, gain, update, [torch.ones(())], [taps.hidden[..., 0]])


def test_the_first_chosen_is_highest_the_last_is_1_and_text_is_below_all() -> None:
    taps = with_rows([[3.0], [9.0], [5.0], [1.0], [99.0]], 3, text=1)
    assert by_size(taps).tolist() == [[1.0, 3.0, 2.0, 0.0, -1.0]]


def test_equals_are_chosen_from_the_lowest_up() -> None:
    taps = with_rows([[2.0], [7.0], [2.0], [2.0]], 3)
    assert by_size(taps).tolist() == [[2.0, 3.0, 1.0, 0.0]]


def test_with_fewer_candidates_than_steps_all_are_chosen_and_nothing_else() -> None:
    taps = with_rows([[1.0], [2.0], [50.0], [60.0]], 3, text=2)
    assert by_size(taps).tolist() == [[2.0, 3.0, -1.0, -1.0]]


def following(taps: Taps, *rows: int, tie: float = 1e-5) -> Taps:
    followed = torch.zeros_like(taps.candidates).index_fill(1, torch.tensor(rows), True)
    return dataclasses.replace(taps, followed=followed, tie=tie)


def test_another_choice_is_followed_where_gains_are_as_good_and_only_there() -> None:
    taps = with_rows([[3.0], [9.0], [5.0], [5.00002], [1.0]], 2)
    own = [[0.0, 2.0, 0.0, 1.0, 0.0]]
    assert by_size(taps).tolist() == own
    assert by_size(following(taps, 1, 2)).tolist() == [[0.0, 2.0, 1.0, 0.0, 0.0]]
    assert by_size(following(taps, 1, 2, tie=1e-7)).tolist() == own
    assert by_size(following(taps, 1, 0)).tolist() == own
    assert by_size(following(taps, 0, 4)).tolist() == own


@every_method
def test_a_choice_that_is_no_near_tie_is_not_followed(name: str) -> None:
    for seed in range(3):
        taps = drawn_taps("decoder", seed=seed)
        own = METHODS[name].score(taps)
        for other in (own > 0, own <= 0, own < 2):
            led = dataclasses.replace(taps, followed=other & taps.candidates, tie=1e-5)
            assert torch.equal(METHODS[name].score(led), own)


@every_method
def test_only_candidates_are_chosen_and_as_many_as_asked(name: str) -> None:
    for keep in (1, 5, 8):
        taps = drawn_taps("decoder", keep=keep, seed=keep)
        chosen = METHODS[name].score(taps) > 0
        assert chosen.sum(1).tolist() == [keep, keep]
        assert not bool((chosen & ~taps.candidates).any())


@every_method
def test_the_first_choices_are_the_same_however_many_follow(name: str) -> None:
    """DART apart: how much each pivot takes depends on how many are kept."""
    few, many = (
        order_of(METHODS[name].score(drawn_taps("decoder", keep=k, seed=4))) for k in (4, 8)
    )
    assert few == [rows[:4] for rows in many]


@every_method
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_chosen_whole_as_its_mean_would_be(
    name: str, scattered: bool, seed: int
) -> None:
    taps, pairs = in_groups(6, scattered, seed)
    taps = dataclasses.replace(taps, tower=None)
    found = METHODS[name].score(taps)[0]
    assert all(found[a] == found[b] for a, b in pairs)
    (means,) = order_of(METHODS[name].score(of_means(taps, pairs)))
    order = sorted(range(6), key=lambda n: -float(found[pairs[n][0]]))[:3]
    assert order == [row - 2 for row in means]


class Orders(nn.Module):
    """Scores of some methods on rows and candidates that are the inputs."""

    def __init__(self, names: Sequence[str], keep: int) -> None:
        super().__init__()
        self.names = names
        self.taps = drawn_taps("decoder", keep=keep, layers=1)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        layer = dataclasses.replace(self.taps.layers[0], key=hidden.unsqueeze(1))
        taps = dataclasses.replace(
            self.taps, hidden=hidden, candidates=mask, text=~mask, layers=[layer], tower=None
        )
        return tuple(METHODS[name].score(taps) for name in self.names)


def exported(names: Sequence[str], keep: int) -> ExportedProgram:
    given = draw(2, 14, 12, seed=1), candidates("decoder", 2, 14)
    sizes = {0: Dim("items", min=1, max=8), 1: Dim("rows", min=12, max=200)}
    return export(Orders(names, keep), given, dynamic_shapes=(sizes, sizes), strict=False)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return exported(GREEDY, 5)


@pytest.fixture(scope="module")
def single() -> ExportedProgram:
    return exported(("divprune",), 5)


def inputs(items: int, rows: int) -> tuple[Tensor, Tensor]:
    return draw(items, rows, 12, seed=rows), candidates("decoder", items, rows)


def test_a_loop_is_one_node_whatever_it_counts(single: ExportedProgram) -> None:
    longer = exported(("divprune",), 11)
    assert len(longer.graph.nodes) == len(single.graph.nodes)
    assert len(loops(single)) == 2  # one looks for the first token


def loops(program: ExportedProgram) -> list[fx.Node]:
    return [n for n in program.graph.nodes if n.target is torch.ops.higher_order.scan]


def test_no_step_asks_for_a_free_size(program: ExportedProgram) -> None:
    bodies = [getattr(program.graph_module, node.args[0].target) for node in loops(program)]
    assert len(bodies) == len(GREEDY) + 1
    asked = [n for body in bodies for n in body.graph.nodes if "sym_" in str(n.target)]
    assert not asked


def test_a_loop_is_printed_with_its_body(
    single: ExportedProgram, check: Callable[[str], None]
) -> None:
    """
    CHECK: %get_attr_1 = body {
    CHECK-NEXT: %given_0 : i64[] = input
    CHECK: %argmax_0 : i64[s0, 1] = aten.argmax(
    CHECK: return %add_0, %where_0,
    CHECK-NEXT: }
    CHECK-NEXT: %scan_1 : {{.*}} = torch.ops.higher_order.scan(%get_attr_1,
    """
    check(print_graph(single))


def test_a_loop_comes_back_from_a_file(single: ExportedProgram, tmp_path: Path) -> None:
    save(Program({"model": single}), tmp_path / "a.pt2")
    loaded = load(tmp_path / "a.pt2")
    save(loaded, tmp_path / "b.pt2")
    save(load(tmp_path / "b.pt2"), tmp_path / "c.pt2")
    assert (tmp_path / "b.pt2").read_bytes() == (tmp_path / "c.pt2").read_bytes()
    for shape in ((2, 14), (3, 90)):
        given = inputs(*shape)
        (found,) = loaded.main.module()(*given)
        assert torch.equal(found, Orders(("divprune",), 5)(*given)[0])


def test_onnx_runtime_chooses_as_torch_does(program: ExportedProgram, tmp_path: Path) -> None:
    target = find("onnxruntime-cpu")
    target.lower(program, tmp_path, GREEDY)
    run = target.open(tmp_path)
    for shape in ((2, 14), (3, 90)):
        hidden, mask = inputs(*shape)
        found = run({"hidden": hidden, "mask": mask})
        for name, wanted in zip(GREEDY, Orders(GREEDY, 5)(hidden, mask), strict=True):
            assert torch.equal(found[name], wanted), name


@pytest.mark.exhaustive
@pytest.mark.needs_cxx
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_aotinductor_chooses_as_torch_does(tmp_path: Path) -> None:
    target = find("aotinductor")
    target.lower(exported(("todre",), 5), tmp_path, ("todre",))
    run = target.open(tmp_path)
    for shape in ((2, 14), (3, 90)):
        hidden, mask = inputs(*shape)
        found = run({"hidden": hidden, "mask": mask})["todre"]
        assert torch.equal(found, Orders(("todre",), 5)(hidden, mask)[0])
