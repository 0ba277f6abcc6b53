"""Quotas per image: what each of two images keeps, where images compete and where they do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from testsuite.passes import gates
from testsuite.passes.analysed import analysed
from testsuite.passes.gates import facts_of
from testsuite.zoo import idefics3
from testsuite.zoo.tiny import IMAGE
from torch import Tensor

from tokopt.cli.compile import quota
from tokopt.cli.main import main
from tokopt.cli.one_program import output_names
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.images import image_count
from tokopt.ir.memory import with_memory
from tokopt.ir.places import Places
from tokopt.ir.plan import Plan, Quota, Stage
from tokopt.ir.program import Program
from tokopt.passes import select, shared
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.base import PassResult
from tokopt.passes.decompose import decompose
from tokopt.passes.methods.registry import METHODS, find_method
from tokopt.passes.pipeline import parse_pipeline, print_pipeline
from tokopt.passes.quotas import images_of, shares, with_quota
from tokopt.passes.validate import Checked, Verdict, run_program, validate
from tokopt.targets.registry import find

EACH = 9
"""Visual rows of one of the two images."""


@functools.cache
def two_images() -> tuple[Facts, dict[str, Tensor]]:
    """Return the facts of a model with two images in a prompt, and inputs for it."""
    sample = idefics3.build()
    facts = facts_of(sample)
    names = map(str, facts.exported.graph_signature.user_inputs)
    return facts, dict(zip(names, sample.all_inputs[-1], strict=True))


def checked(*stages: Stage) -> Checked:
    facts, _ = two_images()
    plan = Plan(stages)
    return Checked(facts, plan, apply_plan(facts.exported, plan, find_method), find_method)


def verdicts(*stages: Stage) -> list[Verdict]:
    return list(validate(checked(*stages), [two_images()[1]]))


def failures(*stages: Stage) -> list[str]:
    return [f"{v.gate}: {v.message}" for v in verdicts(*stages) if not v.passed]


def images_kept(kept: Tensor) -> list[list[int]]:
    """Return, per item, how many of the kept rows are of the first and of the second image."""
    written = two_images()[1]["input_ids"] == IMAGE
    number = (written.long().cumsum(1) - 1) // EACH
    pairs = zip(kept, number, written, strict=True)
    images = [image[rows][is_visual[rows]] for rows, image, is_visual in pairs]
    return [torch.bincount(image, minlength=2).tolist() for image in images]


def kept_by(*stages: Stage) -> list[list[list[int]]]:
    done = checked(*stages)
    outputs = run_program(done.applied.exported, two_images()[1])
    kept = zip(stages, outputs[-2 * len(stages) :: 2], strict=True)
    return [images_kept(rows) for stage, rows in kept if stage.site.startswith("decoder")]


def one(keep: int, quota: Quota = "image", method: str = "fastv") -> Stage:
    return Stage("decoder:1", method, keep, quota=quota)


def test_a_quota_is_part_of_a_plan_file_and_no_other_word_is_one() -> None:
    for chosen in ("joint", "image", 2):
        plan = Plan((one(7, chosen),))  # type: ignore[arg-type]
        assert Plan.from_toml(plan.to_toml()) == plan
        assert ("quota" in plan.to_toml()) == (chosen != "joint")
    for wrong in ('"images"', "0", "true"):
        with pytest.raises(InputError, match="quota"):
            Plan.from_toml(Plan((one(7),)).to_toml().replace('"image"', wrong))


def test_a_pipeline_says_all_that_a_plan_file_says_of_a_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Plan] = []

    def note(program: Program, plan: Plan) -> PassResult:
        asked.append(plan)
        return PassResult(program, modified=False)

    monkeypatch.setattr(select, "inserted", note)
    words = "options={score=rank} until=decoder:3 quota={quota} seed=4"
    for said in ("image", "2"):
        text = "select{site=decoder:1 method=fopru keep=7 " + words.replace("{quota}", said) + "}"
        (step,) = parse_pipeline(text)
        assert print_pipeline([step]) == text
        step.run(Program({"main": two_images()[0].exported}))
    stage = Stage("decoder:1", "fopru", 7, {"score": "rank"}, "decoder:3", "image")
    assert asked == [Plan((stage,), seed=4), Plan((replace(stage, quota=2),), seed=4)]
    (step,) = parse_pipeline("select{site=decoder:1 method=fopru keep=7 quota=0}")
    with pytest.raises(InputError, match="quota = 0"):
        step.run(Program({"main": two_images()[0].exported}))


def test_what_is_left_over_goes_to_the_first_images() -> None:
    assert shares(7, 3) == (3, 2, 2) and shares(2, 3) == (1, 1, 0) and shares(8, 1) == (8,)


@pytest.mark.parametrize("quota", ["image", 2])
def test_each_image_keeps_its_share(quota: Quota) -> None:
    assert kept_by(one(7, quota)) == [[[4, 3]]]
    assert kept_by(one(7, "joint")) != [[[4, 3]]]  # the images do compete
    assert failures(one(7, quota)) == []


def test_stages_one_after_the_other_and_behind_the_tower_share_too() -> None:
    stages = [
        Stage("vision:end", "stride", 24),  # 6 of 9 groups of either picture
        Stage("decoder:1", "fastv", 9, quota="image"),
        Stage("decoder:2", "flowcut", 5, quota=2),
    ]
    assert kept_by(*stages) == [[[5, 4]], [[3, 2]]]
    assert failures(*stages) == []


def test_every_method_of_a_decoder_takes_a_quota() -> None:
    """Also those that fold rows into others, and those that choose one row after another."""
    facts, _ = two_images()
    done = 0
    for name, method in METHODS.items():
        if "decoder" not in method.roles or method.needs & {"places", "tower"} or method.state:
            continue
        stage = one(6, method=name)
        applied = apply_plan(facts.exported, Plan((stage,)), find_method)
        given = with_memory(applied.memory, two_images()[1])
        kept = run_program(applied.exported, given)[-2 - len(applied.memory)]
        assert images_kept(kept) == [[3, 3]], name
        done += 1
    assert done > 5


def test_a_prompt_that_ends_with_an_image_row_keeps_it_within_the_quota() -> None:
    done = checked(one(4))
    ids = two_images()[1]["input_ids"]
    words, visual = ids[ids != IMAGE], ids[ids == IMAGE]
    inputs = two_images()[1] | {"input_ids": torch.cat([words, visual]).unsqueeze(0)}
    assert all(verdict.passed for verdict in validate(done, [inputs]))
    (kept,) = run_program(done.applied.exported, inputs)[-2].tolist()
    first, last = len(words), ids.shape[1] - 1
    assert last in kept
    assert sum(first <= row < first + EACH for row in kept) == 2


def test_a_share_that_goes_to_the_wrong_image_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "shares", lambda keep, n: tuple(reversed(shares(keep, n))))
    failed = {verdict.gate for verdict in verdicts(one(7)) if not verdict.passed}
    assert failed >= {"selection"}


def test_onnx_runtime_keeps_the_same_rows_of_each_image(tmp_path: Path) -> None:
    done = checked(one(5))
    program, names = decompose(done.applied.exported), output_names(done.facts.exported, 1)
    target = find("onnxruntime-cpu")
    target.lower(program, tmp_path, names)
    got = target.open(tmp_path)(two_images()[1])
    wanted = dict(zip(names, run_program(program, two_images()[1]), strict=True))
    assert torch.equal(got["trace.0.kept"], wanted["trace.0.kept"])
    torch.testing.assert_close(got[names[0]], wanted[names[0]], atol=1e-4, rtol=1e-4)


REFUSED: Sequence[tuple[Callable[[], Any], type[Exception], str]] = (
    (lambda: checked(one(6, "joint"), Stage("decoder:2", "stride", 4, quota=2)),
     UnsupportedError, "only known at run time"),
    (lambda: checked(one(6), Stage("decoder:2", "stride", 4, quota=3)),
     UnsupportedError, "decoder:1 has another quota"),
    (lambda: checked(one(6, 4)), InputError, "expected a divisor of 18|not of 4 images"),
    (lambda: checked(Stage("vision:1", "stride", 20, quota="image")), InputError, "on its own"),
    (lambda: checked(Stage("vision:1", "stride", 20), one(6, 3)),
     UnsupportedError, "sees 2 pictures"),
    (lambda: with_quota(two_images()[0], Plan((Stage("vision:1", "stride", 20),)), 3),
     UnsupportedError, "does not keep equally many"),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_quota_that_cannot_be_kept_is_refused_with_the_reason(number: int) -> None:
    attempt, kind, said = REFUSED[number]
    with pytest.raises(kind, match=said):
        attempt()


@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        (None, "does not tell which image"),
        ([0] * 8 + [-1] + [1] * 9, "1 of 18 visual rows .* of no patch"),
        ([0] * 10 + [1] * 8, "do not bring equally many rows.*10, 8"),
        ([0, 1] * 9, "one behind the other"),
    ],
)
def test_tiles_are_no_images_and_nothing_is_guessed(
    tiles: list[int] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(facts: Facts, stack: object) -> Places:
        if tiles is None:
            raise UnsupportedError("where in the image")
        found = torch.tensor(tiles)
        return Places(found, found, found, (2, 3, 3))

    facts, _ = two_images()
    monkeypatch.setattr(Facts, "places", places)
    monkeypatch.setattr(Facts, "feeder", lambda facts, stack: None)
    with pytest.raises(UnsupportedError, match=said) as refusal:
        image_count(facts, facts.consumer, "image")
    assert "quota = 2" in str(refusal.value.hint)
    assert image_count(facts, facts.consumer, 2) == 2


def test_images_packed_into_one_dim_are_told_by_the_items_of_their_tower() -> None:
    family = analysed("qwen_images")  # patches come packed: no graph says where they were
    with pytest.raises(UnsupportedError, match="does not tell where in the image"):
        family.facts.places(family.stack("decoder"))
    assert image_count(family.facts, family.stack("decoder"), "image") == 2
    stage = Stage("decoder:1", "stride", 7, quota="image")
    assert gates.failures(family.facts, (stage,), family.sample.inputs) == []


def test_a_budget_with_a_quota_shares_in_the_decoder_and_leaves_the_tower_as_it_is() -> None:
    facts, _ = two_images()
    plan = Plan((Stage("vision:1", "stride", 20), one(6, "joint")))
    tower, decoder = with_quota(facts, plan, "image").stages
    assert (tower.quota, decoder.quota) == ("joint", "image")
    assert with_quota(facts, plan, "joint") is plan
    assert images_of(facts, with_quota(facts, plan, "image")) == {"decoder:1": 2}


def test_the_command_line_takes_a_word_or_a_number_and_a_plan_holds_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert [quota(text) for text in ("joint", "image", "2")] == ["joint", "image", 2]
    assert main(["compile", "m.pt2", "--plan", "p.toml", "--quota", "image"]) == 2
    assert "--quota cannot be given with --plan" in capfd.readouterr().err
    assert main(["compile", "m.pt2", "--budget", "0.5", "--quota", "images"]) == 2
    assert "joint, image, or the number of images" in capfd.readouterr().err
