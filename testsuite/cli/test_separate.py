"""Vision, prefill and decode as three programs: compiled as one model, and three again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from testsuite.zoo.handvlm import HandVlm, Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from testsuite.zoo.weights import randomise
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import tokopt
from tokopt.cli.asked import SEARCH, Wanted
from tokopt.cli.main import main
from tokopt.cli.separate import Separate
from tokopt.cli.verifier import verify as tokopt_verify
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.limits import parse_limits
from tokopt.passes.methods.registry import find_method
from tokopt.passes.validate import Checked
from tokopt.targets.manifest import read_manifest

SIZES = Sizes(layers=1, tower_layers=2)
KEEP = SIZES.visual // 2
PLAN = Plan((Stage("vision:1", "stride", KEEP),), 0.5)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def graphs() -> dict[str, ExportedProgram]:
    """The programs under names of nobody's choice but the main one's."""
    made = parts(SIZES, dynamic=True, batch=False)
    return {"eyes": made["vision"], "prefill": made["prefill"], "a-step": made["decode"]}


@dataclass(frozen=True)
class Built:
    archive: Path
    folder: Path


@pytest.fixture(scope="module")
def built(graphs: dict[str, ExportedProgram], tmp_path_factory: pytest.TempPathFactory) -> Built:
    place = tmp_path_factory.mktemp("separate")
    archive, folder = place / "parts.pt2", place / "built"
    save(Program(graphs), archive)
    options = ["--budget", "0.5", "--method", "stride", "--target", "onnxruntime-cpu"]
    assert main(["compile", str(archive), *options, "-o", str(folder)]) == 0
    return Built(archive, folder)


def given(text: int, seed: int = 5) -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, 1, text, seed)
    place = torch.full_like(ids[:, :1], ids.shape[1])
    return {
        "pixels": pixels,
        "input_ids": ids,
        "a_step_input_ids": ids[:, :1].clone(),
        "positions": place,
    }


def test_three_programs_come_out_with_their_links_and_every_gate(built: Built) -> None:
    manifest = read_manifest(built.folder)
    assert [str(link) for link in manifest.links] == [
        "eyes.handed_0 → prefill.handed_0",
        "eyes.output → prefill.features",
        "prefill.output_1 → a-step.cache_0",
        "prefill.output_2 → a-step.cache_1",
    ]
    assert [(p.name, p.part, p.follows) for p in manifest.programs] == [
        ("eyes", "-eyes", False),
        ("prefill", "-prefill", False),
        ("a-step", "-a-step", True),
    ]
    gates = [gate.gate for gate in manifest.gates]
    inner = ["structure", "identity", "selection", "oracle", "parted", "following"]
    assert gates == [*inner, "target", "target", "target", "target"]
    assert all(gate.passed for gate in manifest.gates)
    names = {path.name for path in built.folder.glob("*.onnx")}
    assert names == {"model-eyes.onnx", "model-prefill.onnx", "model-a-step.onnx"}
    assert manifest.budget.total["tokens"].measured == 0.5


def test_half_the_rows_are_handed_over_and_the_cache_never_has_the_others(built: Built) -> None:
    eyes, prefill, step = read_manifest(built.folder).programs
    width, heads = SIZES.width, SIZES.heads
    shapes = {spec.name: spec.shape for spec in eyes.signature.outputs}
    assert shapes["output"] == (1, KEEP, width)
    taken = {spec.name: spec.shape for spec in prefill.signature.inputs}
    assert list(taken) == ["input_ids", "features", "handed_0"]
    assert taken["features"] == (1, KEEP, width)
    left = {spec.name: spec.shape for spec in prefill.signature.outputs}
    rows = f"input_ids_dim1 - {SIZES.visual - KEEP}"
    assert left["output_1"] == (1, heads, rows, width // heads)
    assert left["output_0"] == (1, "input_ids_dim1", SIZES.vocabulary)
    model = onnx.load(built.folder / "model-eyes.onnx", load_external_data=False)
    assert [output.name for output in model.graph.output][:1] == ["output"]
    assert step.signature.inputs[2].shape[2] == "cache_0_dim2"


def test_all_together_are_each_alone_on_what_the_others_gave(built: Built) -> None:
    model, every = tokopt.load(built.folder), given(9)
    whole = model(every, trace=True)
    assert list(whole) == [
        *("trace.0.kept", "trace.0.scores", "output_0", "output_1", "output_2"),
        *("a_step_output_0", "a_step_output_1", "a_step_output_2"),
    ]
    seen = model.program("eyes")(pixels=every["pixels"])
    read = model.program("prefill")(
        input_ids=every["input_ids"], features=seen["output"], handed_0=seen["handed_0"]
    )
    told = model.program("a-step")(
        input_ids=every["a_step_input_ids"],
        positions=every["positions"],
        cache_0=read["output_1"],
        cache_1=read["output_2"],
    )
    assert all(torch.equal(whole[name], read[name]) for name in read)
    assert all(torch.equal(whole[f"a_step_{name}"], told[name]) for name in told)
    assert whole["output_1"].shape[2] == SIZES.visual + 9 - KEEP


def test_what_follows_is_left_out_where_it_is_given_nothing(built: Built) -> None:
    model, every = tokopt.load(built.folder), given(6)
    asked = {name: every[name] for name in ("pixels", "input_ids")}
    assert list(model(asked)) == ["output_0", "output_1", "output_2"]
    with pytest.raises(InputError, match="'positions' is missing"):
        model({**asked, "a_step_input_ids": every["a_step_input_ids"]})
    with pytest.raises(InputError, match="no program 'nose'"):
        model.program("nose")
    wrong = every["input_ids"].clone()
    wrong[0, -1] = SIZES.image_token
    with pytest.raises(InputError, match="item 0 has 37 image placeholders"):
        model(pixels=every["pixels"], input_ids=wrong)


def test_they_compute_what_the_same_plan_makes_of_the_whole_model(
    built: Built, tmp_path: Path
) -> None:
    model = randomise(HandVlm(SIZES).eval().requires_grad_(False), 0)
    pixels, ids = inputs(SIZES, 1, 6, seed=7)
    exported = torch.export.export(model, (ids, pixels), strict=False)
    plan = built.folder / "plan.toml"
    one = tokopt.compile(Program.of(exported), tmp_path / "one", plan=plan, target="eager")
    wanted = tokopt.load(one.folder)(pixels=pixels, input_ids=ids, trace=True)
    got = tokopt.load(built.folder)(pixels=pixels, input_ids=ids, trace=True)
    assert torch.equal(wanted["trace.0.kept"], got["trace.0.kept"])
    (logits,) = (value for name, value in wanted.items() if not name.startswith("trace."))
    torch.testing.assert_close(got["output_0"], logits, rtol=1e-5, atol=1e-5)


def test_run_verify_and_inspect_know_the_programs(
    built: Built, tmp_path: Path, capfd: Capture
) -> None:
    every, out = given(6), str(tmp_path / "out.safetensors")
    save_file(every, tmp_path / "every.safetensors")
    save_file({"pixels": every["pixels"]}, tmp_path / "pixels.safetensors")
    folder = str(built.folder)
    assert main(["run", folder, "--inputs", str(tmp_path / "every.safetensors"), "-o", out]) == 0
    assert "a_step_output_0" in load_file(out)
    line = ["run", folder, "--program", "eyes", "--inputs", str(tmp_path / "pixels.safetensors")]
    assert main([*line, "-o", out]) == 0
    assert load_file(out)["output"].shape == (1, KEEP, SIZES.width)
    capfd.readouterr()
    assert main(["verify", folder, "--against", str(built.archive), "--json"]) == 0
    gates = [gate["gate"] for gate in json.loads(capfd.readouterr().out)["gates"]]
    assert gates[:1] == ["files"] and gates[5:8] == ["parted", "following", "program"]
    line = ["verify", folder, "--inputs", str(tmp_path / "every.safetensors"), "--json"]
    assert main(line) == 0
    gates = [gate["gate"] for gate in json.loads(capfd.readouterr().out)["gates"]]
    assert gates == ["files", *["target"] * 4]
    assert main(["inspect", folder, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["joined"] == ["eyes", "prefill"] and len(shown["links"]) == 4


def test_a_cache_of_one_length_and_a_method_that_remembers_are_refused(
    graphs: dict[str, ExportedProgram], tmp_path: Path
) -> None:
    place = tmp_path / "none"
    fixed = Program(parts(SIZES))
    with pytest.raises(UnsupportedError, match=r"'decode' takes 42 rows as 'cache_0'.*leave 24"):
        tokopt.compile(fixed, place, plan=PLAN, target="eager")
    with pytest.raises(UnsupportedError, match="remembers from call to call"):
        tokopt.compile(Program(graphs), place, budget=0.5, method="stc", target="eager")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def twice(built: Built) -> Path:
    """The artifact of two budgets."""
    folder = built.folder.with_name("twice")
    options = ["--budget", "0.5,0.25", "--method", "stride", "--target", "onnxruntime-cpu"]
    assert main(["compile", str(built.archive), *options, "-o", str(folder)]) == 0
    return folder


def test_several_budgets_have_one_decode_and_a_vision_and_prefill_each(twice: Path) -> None:
    own, other = read_manifest(twice).parts.values()
    parts = [[p.part for p in manifest.programs] for manifest in (own, other)]
    assert parts == [
        ["-eyes", "-prefill", "-a-step"],
        ["-eyes-0.25", "-prefill-0.25", "-a-step"],
    ]
    assert [m.budget.total["tokens"].measured for m in (own, other)] == [0.5, 0.25]
    assert len({path.name for path in twice.glob("model*.onnx")}) == 5
    assert {path.name for path in twice.glob("plan*.toml")} == {"plan.toml", "plan-0.25.toml"}
    model, every = tokopt.load(twice), given(9)
    whole, half = model(every), model.at(0.25)(every)
    rows = [out["output_1"].shape[2] for out in (whole, half)]
    assert rows[0] - rows[1] == SIZES.visual // 4
    again = model(every, budget=0.25)
    assert all(torch.equal(half[name], again[name]) for name in half)
    assert model.at(0.25).program("a-step").runner is model.program("a-step").runner


def test_it_is_timed_on_prompts_and_on_a_step_behind_them(
    twice: Path, built: Built, capfd: Capture
) -> None:
    line = ["bench", str(twice), "--against", str(built.archive), "--budget", "0.25", "--json"]
    assert main([*line, "--rounds", "2", "--tokens", "3", "--no-memory"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["stages"] == [f"stride at vision:end keeps {SIZES.visual // 4}"]
    ran = {one["what"]: list(one["seconds"]) for one in said["timed"]}
    assert ran == {
        "prompt": ["original", "compiled", "floor"],
        "a-step": ["original", "compiled"],
        "prompt and 3 tokens": ["original", "compiled"],
    }
    assert said["timed"][0]["compiled/floor"]["median"] > 0
    assert said["timed"][1]["compiled/floor"] is None


def test_every_budget_of_several_programs_is_verified_again(twice: Path, built: Built) -> None:
    gates = tokopt_verify(twice, against=built.archive)
    assert all(gate.passed for gate in gates)
    assert [gate.gate for gate in gates].count("program") == 2


def test_limits_hold_for_several_programs_and_a_greedy_choice_is_in_one_of_them(
    graphs: dict[str, ExportedProgram], tmp_path: Path
) -> None:
    limits = parse_limits("tokens=0.75,flops=0.8")
    options = {"method": "divprune", "target": "onnxruntime-cpu"}
    made = tokopt.compile(Program(graphs), tmp_path / "built", budget=limits, **options)
    assert made.ok and made.budget.total <= 0.75 and made.work.total <= 0.8
    scans = [
        any(node.op_type == "Scan" for node in onnx.load(path).graph.node)
        for path in (made.folder / f"model-{name}.onnx" for name in ("eyes", "prefill", "a-step"))
    ]
    assert scans == [True, False, False]


@pytest.mark.exhaustive
def test_a_search_judges_what_several_programs_can_run(
    graphs: dict[str, ExportedProgram], tmp_path: Path
) -> None:
    wanted = Wanted(effort="quick", trials=1)
    place = tmp_path / "found"
    found = tokopt.compile(Program(graphs), place, budget=0.5, search=wanted, target="eager")
    assert found.ok and "plans judged" in found.note
    judged = json.loads((place / SEARCH).read_text())["0.5"]["judged"]
    assert len(judged) > 9 and not {"stc", "vla_pruner"} & {one["origin"] for one in judged}


def test_a_program_that_nothing_links_and_links_that_leave_a_choice_are_refused(
    tmp_path: Path,
) -> None:
    one = torch.export.export(nn.ReLU(), (torch.ones(2, 3),))
    other = torch.export.export(nn.AvgPool1d(2), (torch.ones(5, 7),))
    for graphs, message in (
        ({"a": one, "forward": one}, "would feed each other"),
        ({"a": other, "forward": one}, "'a' is not linked to 'forward'"),
        ({"a": one, "b": one}, "none is the main one"),
    ):
        with pytest.raises((InputError, UnsupportedError), match=message):
            tokopt.compile(Program(graphs, "x.pt2"), tmp_path / "none", budget=0.5)


class Counting(nn.Module):
    """A step that takes the number of rows in its cache for its position."""

    def __init__(self, language: nn.Module) -> None:
        super().__init__()
        self.language = language

    def forward(self, input_ids: Tensor, cache: list[Tensor]) -> Tensor:
        language, past = self.language, cache[0].shape[2]
        x = language.embed(input_ids) + language.place(torch.arange(past, past + 1))
        x, _, _ = language.layers[0](x, past=(cache[0], cache[1]))
        return language.head(language.norm(x))


def test_a_step_that_counts_the_rows_of_its_cache_fails_the_gate(
    graphs: dict[str, ExportedProgram],
) -> None:
    pixels, ids = inputs(SIZES)
    model = randomise(HandVlm(SIZES).eval().requires_grad_(False), 0)
    cache = list(model.language(ids, model.vision(pixels))[1:])
    sized = ({}, [{2: Dim("past", min=2, max=100)} for _ in cache])
    step = torch.export.export(
        Counting(model.language), (ids[:, :1], cache), dynamic_shapes=sized, strict=False
    )
    found = {}
    for name, follower in (("told", graphs["a-step"]), ("counting", step)):
        front = {name: graphs[name] for name in ("eyes", "prefill")}
        separate = Separate.of(Program({**front, name: follower}))
        applied = apply_plan(separate.joined, PLAN, find_method)
        separate.parted(applied)
        checked = Checked(analyse(separate.joined), PLAN, applied, find_method)
        every = separate.inputs(None)
        own, theirs = separate.of_joined(every), separate.of_followers(every)
        (found[name],) = separate.followers().judge(checked, own, theirs)
    assert found["told"].passed and not found["counting"].passed
    assert "with the position as an input" in found["counting"].message
