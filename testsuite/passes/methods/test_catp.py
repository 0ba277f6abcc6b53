"""CATP against the formula, image for image, set for set, in double precision. About 6 s."""

import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures
from testsuite.passes.methods.chosen import greedily, order_of
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.ir.plan import Plan, Stage
from tokopt.passes.methods.catp import METHOD, schedule
from tokopt.passes.methods.method import Placement, Setting, Taps

PROMPTS = ("tVVVtVVVVVttVVVVt", "ttVVVVVVVVVVVVtt", "VVVVVVtVVVtVVVttt")
"""Twelve visual rows each: three images, one, three; t is text."""


def prompt(keep: int, seed: int, later: bool = False, group: int = 1) -> Taps:
    taps = drawn_taps("decoder", batch=3, rows=17, keep=keep, seed=seed, carried=later)
    visual = torch.tensor([[c == "V" for c in line.ljust(17, "-")] for line in PROMPTS])
    text = torch.tensor([[c == "t" for c in line.ljust(17, "-")] for line in PROMPTS])
    return dataclasses.replace(taps, candidates=visual, text=text, count=12, group=group)


def images(line: str) -> list[list[int]]:
    """The rows of each image, and after them the first row behind the prompt's last one."""
    runs: list[list[int]] = []
    for row, kind in enumerate(line):
        if kind == "V":
            if row and line[row - 1] == "V":
                runs[-1].append(row)
            else:
                runs.append([row])
    return runs


def texts(line: str) -> list[list[int]]:
    """The text behind each image, up to the next one."""
    ends = [run[0] for run in images(line)[1:]] + [len(line)]
    return [list(range(run[-1] + 1, end)) for run, end in zip(images(line), ends, strict=True)]


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def parts(sizes: list[int], keep: int) -> list[int]:
    """Shares in proportion, what rounding leaves to the largest."""
    share = [keep * size // sum(sizes) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda n: (-sizes[n], n))
    for place in order[: keep - sum(share)]:
        share[place] += 1
    return share


@pytest.mark.parametrize("keep", [3, 6, 11])
@pytest.mark.parametrize("seed", range(3))
def test_every_image_covers_itself_for_its_own_text(keep: int, seed: int) -> None:
    taps = prompt(keep, seed)
    orders = order_of(METHOD.score(taps))
    for line, hidden, order in zip(PROMPTS, taps.hidden.double().numpy(), orders, strict=True):
        share = parts([len(run) for run in images(line)], keep)
        for run, words, count in zip(images(line), texts(line), share, strict=True):
            mean = hidden[words].mean(0)

            def worth(chosen: list[int], row: int, run=run, mean=mean, hidden=hidden) -> float:  # type: ignore[no-untyped-def]
                kept = [*chosen, row]
                near = [max((1 + cos(hidden[y], hidden[x])) / 2 for y in kept) for x in run]
                return sum(near) + 0.7 * sum((1 + cos(hidden[y], mean)) / 2 for y in kept)

            assert [row for row in order if row in run] == greedily(worth, run, count)


@pytest.mark.parametrize("keep", [2, 5, 9])
@pytest.mark.parametrize("seed", range(3))
def test_examples_and_question_choose_each_others_tokens(keep: int, seed: int) -> None:
    taps = prompt(keep, seed, later=True)
    stays = torch.topk(METHOD.score(taps), keep, dim=1)[1].sort(1)[0].tolist()
    now, before = (taps.layers[n].row(-1).double().mean(1).numpy() for n in (-1, -2))
    for item, line in enumerate(PROMPTS):
        hidden, runs = taps.hidden[item].double().numpy(), images(line)
        example = [row for run in (runs[:-1] or runs) for row in run]
        own = runs[-1] if len(runs) > 1 else []
        question = hidden[[*own, *texts(line)[-1]]].mean(0)
        rating = {
            row: max(0.0, now[item, row] - before[item, row]) + 0.6 * cos(hidden[row], question)
            for row in example
        }
        count, rest = parts([len(example), len(own)], keep)
        expected = sorted(example, key=lambda row: -rating[row])[:count]
        if own:
            front = [row for row in range(own[0]) if line[row] == "t"]
            context = hidden[[*expected, *front]].mean(0)
            by_context = sorted(own, key=lambda row: -cos(hidden[row], context))
            expected += by_context[:rest]
        assert stays[item] == sorted(expected)


def test_rows_leave_in_whole_groups_of_an_image() -> None:
    visual = torch.tensor([[c == "V" for c in "tVVVVtVVVVVVVVttt"]]).expand(3, -1)
    for later in (False, True):
        taps = prompt(6, 1, later, group=2)
        taps = dataclasses.replace(taps, candidates=visual, text=~visual)
        found = METHOD.score(taps)[visual].view(3, 6, 2)
        assert torch.equal(found[..., 0] > 0, found[..., 1] > 0)
        kept = (found[..., 0] >= 1).long()
        assert kept[:, :2].sum(1).tolist() == [1, 1, 1] and kept.sum(1).tolist() == [3, 3, 3]


def test_half_goes_in_front_of_the_decoder_and_half_behind_layer_six() -> None:
    placed = schedule(Setting("decoder", 32, 576, 64, consumer=True))
    assert placed == (Placement(0, 320), Placement(6, 64))
    assert schedule(Setting("decoder", 48, 576, 192))[1].depth == 9
    assert schedule(Setting("decoder", 1, 8, 4, 4)) == (Placement(0, 4), Placement(1, 4))


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_both_stages_are_what_the_oracle_chooses(name: str) -> None:
    family = analysed(name)
    stages = (Stage("decoder:0", "catp", 18), Stage("decoder:2", "catp", 9))
    assert failures(checked(family, Plan(stages)), [every_input(family)[0]]) == ""
