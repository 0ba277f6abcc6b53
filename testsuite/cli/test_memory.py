"""What stages keep from call to call: the artifact carries it, as numpy that carries its own.

A tiny LLaVA-NeXT-Video, five frames of 3 x 3 tokens, on ONNX Runtime; about 15 s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from testsuite.passes.families import rewritten
from testsuite.passes.methods.streams import StcStream
from testsuite.zoo import llava_next_video
from testsuite.zoo.sample import Sample
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan, Stage
from tokopt.passes import reading, stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.observe import observe
from tokopt.passes.search.replay import Replay
from tokopt.passes.validate import Checked, run_program, validate
from tokopt.targets.registry import find

FRAMES, PLACES, KEEP = 5, 9, 11
PLAN = Plan((Stage("decoder:0", "stc", KEEP), Stage("decoder:1", "vla_pruner", 6)))
STATES = ["state_0_mean", "state_0_count", "state_1_history"]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return llava_next_video.build()


@pytest.fixture(scope="module")
def archive(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "video.pt2"
    torch.export.save(sample.exported, path)
    return path


@pytest.fixture(scope="module")
def facts(sample: Sample) -> Facts:
    return analyse(normalize(sample.exported))


@pytest.fixture(scope="module")
def built(archive: Path) -> Path:
    done = tokopt.compile(archive, archive.with_name("built"), plan=PLAN, target="onnxruntime-cpu")
    assert done.ok
    return done.folder


@pytest.fixture(scope="module")
def chunks(sample: Sample) -> list[dict[str, Tensor]]:
    """Three chunks of a video in the same prompt."""
    names = sample.exported.graph_signature.user_inputs
    given = dict(zip(names, sample.inputs, strict=True))
    (pixels,) = (name for name, value in given.items() if value.is_floating_point())
    noise = torch.Generator().manual_seed(3)
    return [
        {**given, pixels: given[pixels] + call * torch.randn(given[pixels].shape, generator=noise)}
        for call in range(3)
    ]


@pytest.fixture
def stream(facts: Facts) -> Callable[[dict[str, Tensor]], list[int]]:
    """STC in numpy on the rows as the original has them at the decoder's entry."""
    pruner = StcStream(FRAMES, KEEP)

    def kept(chunk: dict[str, Tensor]) -> list[int]:
        seen = observe(facts, chunk).stacks["decoder"]
        rows = np.flatnonzero(seen.candidates[0].numpy())
        hidden = seen.hidden["decoder:0"][0].numpy()[rows]
        return [int(rows[i]) for i in pruner(hidden, np.arange(len(rows)) // PLACES)]

    return kept


def visual(kept: Tensor, chunk: dict[str, Tensor], facts: Facts) -> list[int]:
    candidates = observe(facts, chunk).stacks["decoder"].candidates[0]
    return [row for row in kept[0].tolist() if candidates[row]]


def test_calls_in_a_row_keep_what_numpy_keeps_that_carries_the_state(
    built: Path,
    chunks: list[dict[str, Tensor]],
    facts: Facts,
    stream: Callable[[dict[str, Tensor]], list[int]],
) -> None:
    model = tokopt.load(built)
    first = []
    for number, chunk in enumerate(chunks):
        out = model(chunk, trace=True)
        first.append(out["trace.0.kept"])
        assert visual(first[-1], chunk, facts) == stream(chunk)
        assert model.remembered["state_0_count"].tolist() == [[number + 1]]
    assert set(model(chunks[0])) == {"output"}
    model.reset()
    assert model.remembered == {}
    again = model(chunks[0], trace=True)
    assert torch.equal(again["trace.0.kept"], first[0])
    history = again["state_1_history_next"]
    assert history.shape == (1, 3, FRAMES * PLACES)
    assert history[0, :2].eq(0).all() and (history[0, 2] > 0).sum() <= KEEP


def test_what_is_given_holds_instead_of_what_was_remembered(
    built: Path, chunks: list[dict[str, Tensor]]
) -> None:
    model = tokopt.load(built)
    wanted = model(chunks[1])["output"]
    model(chunks[0])
    zeros = {name: torch.zeros_like(value) for name, value in model.remembered.items()}
    assert torch.equal(model({**chunks[1], **zeros})["output"], wanted)
    with pytest.raises(InputError, match="state_0_count"):
        model({**chunks[1], "state_0_count": torch.zeros(2, 1)})


@pytest.mark.exhaustive
@pytest.mark.needs_cxx
@pytest.mark.skipif(find("aotinductor").available() is not None, reason="no C++ compiler")
def test_machine_code_carries_what_is_remembered(
    archive: Path,
    built: Path,
    chunks: list[dict[str, Tensor]],
    facts: Facts,
    stream: Callable[[dict[str, Tensor]], list[int]],
    tmp_path: Path,
) -> None:
    done = tokopt.compile(archive, tmp_path / "built", plan=PLAN, target="aotinductor")
    assert done.ok
    model, other = tokopt.load(done.folder), tokopt.load(built)
    for chunk in chunks:
        out, wanted = model(chunk, trace=True), other(chunk, trace=True)
        assert visual(out["trace.0.kept"], chunk, facts) == stream(chunk)
        for name in ("trace.0.kept", "trace.1.kept", "output"):
            torch.testing.assert_close(out[name], wanted[name], rtol=1e-4, atol=1e-4)
        for name, value in model.remembered.items():
            torch.testing.assert_close(value, other.remembered[name], rtol=1e-4, atol=1e-5)
    assert model.remembered["state_0_count"].tolist() == [[len(chunks)]]


@pytest.mark.exhaustive
def test_a_stream_may_change_its_budget_and_ends_for_all_budgets_at_once(
    archive: Path, chunks: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    done = tokopt.compile(
        archive, tmp_path / "built", budget=(0.5, 0.2), method="stc", target="eager"
    )
    assert done.ok
    model = tokopt.load(done.folder)
    model(chunks[0])
    model(chunks[1], budget=0.2)
    assert model.remembered["state_0_count"].tolist() == [[2]]
    one = tokopt.load(done.folder)
    one(chunks[0])
    one(chunks[1])
    assert torch.equal(one.remembered["state_0_mean"], model.remembered["state_0_mean"])
    model.reset()
    assert model.at(0.2).remembered == {} and model.remembered == {}


def test_the_manifest_says_what_is_kept_and_run_and_verify_work(
    built: Path,
    archive: Path,
    chunks: list[dict[str, Tensor]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert [one["input"] for one in manifest["memory"]] == STATES
    shapes = {spec["name"]: spec["shape"] for spec in manifest["signature"]["inputs"]}
    assert all(shapes[one["input"]] == one["shape"] for one in manifest["memory"])
    first, after = tmp_path / "first.safetensors", tmp_path / "after.safetensors"
    save_file({name: value.contiguous() for name, value in chunks[0].items()}, first)
    assert main(["run", str(built), "--inputs", str(first), "--trace", "-o", str(after)]) == 0
    kept = load_file(after)
    states = {name: kept[f"{name}_next"] for name in STATES}
    assert kept["state_0_count_next"].tolist() == [[1]]
    save_file({**{n: v.contiguous() for n, v in chunks[1].items()}, **states}, first)
    assert main(["run", str(built), "--inputs", str(first), "--trace", "-o", str(after)]) == 0
    assert load_file(after)["state_0_count_next"].tolist() == [[2]]
    capsys.readouterr()
    assert main(["verify", str(built), "--against", str(archive)]) == 0


@pytest.mark.parametrize("wrong", ["stale", "of other rows"])
def test_the_oracle_catches_a_state_that_is_not_kept_or_read_wrongly(
    wrong: str, facts: Facts, chunks: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "stale":
        kept = stage.remember_rows

        def remember(work, read, method, rows):  # type: ignore[no-untyped-def]
            found = kept(work, read, method, rows)
            held = {node.name.split("_", 2)[-1]: node for node in read.operands}
            return {name: held[name] for name in found}

        monkeypatch.setattr(stage, "remember_rows", remember)
    else:
        count = reading.visual_numbers

        def backwards(*places):  # type: ignore[no-untyped-def]
            numbers = count(*places)
            return lambda *given: FRAMES * PLACES - 1 - numbers(*given)

        monkeypatch.setattr(reading, "visual_numbers", backwards)
    plan = Plan((Stage("decoder:1", "vla_pruner", 6),))
    applied = apply_plan(facts.exported, plan, find_method)
    found = list(validate(Checked(facts, plan, applied, find_method), [chunks[0]]))
    assert {v.gate for v in found if not v.passed} & {"oracle", "selection"}


def test_a_search_judges_such_a_plan_by_its_first_call(
    facts: Facts, chunks: list[dict[str, Tensor]]
) -> None:
    applied = apply_plan(facts.exported, PLAN, find_method)
    wanted = run_program(applied.exported, with_memory(applied.memory, chunks[0]))
    kept = applied.trace[0][0]
    (found,) = Replay(facts.exported, [chunks[0]]).run(applied.exported, [kept])
    names = [spec.arg.name for spec in applied.exported.graph_signature.output_specs]
    assert torch.equal(found[kept], wanted[names.index(kept)])


def test_a_free_number_of_items_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="their number is free"):
        rewritten("llava_dynamic", "decoder:1 vla_pruner 9")
