"""Generation: greedy tokens are transformers' own; below budget 1 those of the masked oracle."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from testsuite.zoo import llava, qwen2_vl
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import tokopt
from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_generation import Generation
from tokopt.cli.capture_prompt import sample_prompt
from tokopt.cli.capture_request import Request
from tokopt.cli.generation import refuse_stages, with_followers
from tokopt.cli.main import main
from tokopt.cli.processor import ending_tokens
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import torch_run
from tokopt.ir.decoding import Cache, find_decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.links import find_links
from tokopt.ir.load import load
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.oracle import run_masked, run_oracle
from tokopt.targets.calling import runner_of
from tokopt.targets.generate import generate
from tokopt.targets.manifest import Manifest
from tokopt.targets.runtime import Artifact
from tokopt.targets.sampling import Sampling

SIZES = Sizes(layers=2, tower_layers=2)
Capture = pytest.CaptureFixture[str]
PLAN = Plan((Stage("vision:1", "stride", SIZES.visual // 2),), 0.5)


@dataclass(frozen=True)
class Exported:
    """A model of transformers, and its archive of prefill and decode with padded prompts."""

    model: llava.LlavaForConditionalGeneration
    program: Program
    separate: Separate
    place: Path

    def generated(self, asked: dict[str, Tensor], most: int) -> Tensor:
        """What transformers itself generates."""
        made = self.model.generate(**asked, max_new_tokens=most, do_sample=False, eos_token_id=None)
        return made[:, asked["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("generate")
    model = llava.model(attention="sdpa", seed=0, layers=1)
    model.save_pretrained(place / "model")
    options = ["--decode", "--padding", "--dynamic", "batch,length", "-o", str(place / "two.pt2")]
    assert main(["export", str(place / "model"), *options]) == 0
    program = load(place / "two.pt2")
    return Exported(model, program, Separate.of(program), place)


@pytest.fixture(scope="module")
def half(exported: Exported) -> Artifact:
    """Half of the visual rows, on ONNX Runtime."""
    place, plan = exported.place / "half", Plan((Stage("decoder:0", "stride", 18),), 0.5)
    made = tokopt.compile(exported.program, place, plan=plan, target="onnxruntime-cpu")
    return tokopt.load(made.folder)


def in_torch(separate: Separate, plan: Plan, asked: dict[str, Tensor], most: int) -> Tensor:
    """Generate with the programs that a plan makes, run in torch."""
    facts = analyse(separate.joined)
    applied = apply_plan(separate.joined, plan, find_method)
    parts, chain = separate.parted(applied)
    manifest = Manifest(
        "eager",
        chain.signature,
        programs=tuple(chain.programs),
        links=tuple(chain.links),
        decoding=separate.decoding(facts),
    )
    graphs = {name: part.exported for name, part in parts.items()}
    decode = runner_of(graphs["decode"], parts["decode"].outputs)
    return generate(
        manifest,
        lambda given: torch_run(chain, graphs, given),
        decode,
        asked,
        code=lambda one: runner_of(graphs[one.name], parts[one.name].outputs),
        max_new_tokens=most,
        stop=(),
    )


def padded(text: int, widths: tuple[int, ...], seed: int = 5) -> dict[str, Tensor]:
    """Prompts with ``text`` words beside the picture, so much of them padding in front."""
    length = llava.VISUAL + text
    pixels, _ = llava.inputs(len(widths), length, seed)
    mask = (torch.arange(length) >= torch.tensor(widths)[:, None]).long()
    ids = sample_prompt(
        len(widths),
        length,
        visual=llava.VISUAL,
        token=llava.IMAGE_TOKEN,
        vocabulary=llava.TEXT_VOCABULARY,
        mask=mask,
        seed=seed,
    )
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def test_at_budget_one_greedy_tokens_are_those_of_transformers(exported: Exported) -> None:
    asked, every = padded(12, (0, 5)), Plan((Stage("decoder:0", "stride", llava.VISUAL),), 1.0)
    got = in_torch(exported.separate, every, asked, 12)
    assert torch.equal(got, exported.generated(asked, 12))
    assert len(got.unique()) > 2 and not torch.equal(got[0], got[1])


def by_oracle(separate: Separate, plan: Plan, asked: dict[str, Tensor], steps: int) -> Tensor:
    """Greedy tokens of the original programs, full caches, the dropped rows masked."""
    free = run_oracle(analyse(separate.joined), plan, asked, find_method)
    logits, *past = free.outputs.values()
    assert any(bool(rows.isnan().any()) for rows in past)
    decode, made = analyse(separate.program.graphs["decode"]), [logits[:, -1].argmax(-1)]
    mask = asked.get("attention_mask")
    for step in range(steps - 1):
        place = torch.full_like(made[-1], asked["input_ids"].shape[1] + step)[:, None]
        told = {"input_ids": made[-1][:, None], "position_ids": place}
        if mask is not None:
            mask = told["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        cache = {f"past_{i}": rows.float() for i, rows in enumerate(past)}
        logits, *past = run_masked(decode, {**told, **cache}).values()
        made.append(logits[:, -1].argmax(-1))
    return torch.stack(made, 1)


def test_below_budget_one_greedy_tokens_are_the_masked_oracles(
    exported: Exported, half: Artifact
) -> None:
    asked, plan = padded(12, (0, 5)), Plan.from_toml((half.folder / "plan.toml").read_text())
    got = half.generate(asked, max_new_tokens=8, stop=())
    assert torch.equal(got, by_oracle(exported.separate, plan, asked, 8))
    assert not torch.equal(got, exported.generated(asked, 8)), "half of the rows say otherwise"
    assert not torch.equal(got[0], got[1])


def two_layers(padding: bool) -> Separate:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    request = Request(dynamic=frozenset({"batch", "length"}), padding=padding, decode=True)
    prompt = FAMILIES["llava"].prepare(model, request, {})
    return Separate.of(Program(Generation.of(prompt, request).trace()))


@pytest.mark.exhaustive
def test_layers_behind_a_stage_in_the_decoder_go_on_with_shorter_caches() -> None:
    separate = two_layers(padding=False)
    asked, plan = padded(12, (0, 0)), Plan((Stage("decoder:1", "fastv", 9),), 0.625)
    del asked["attention_mask"]
    got = in_torch(separate, plan, asked, 8)
    assert torch.equal(got, by_oracle(separate, plan, asked, 8))
    assert len(got.unique()) > 2


@pytest.mark.exhaustive
def test_positions_of_three_axes_go_on_behind_those_of_the_prompt() -> None:
    model = qwen2_vl.model(attention="sdpa", seed=0)
    request = replace(qwen2_vl.REQUEST, dynamic=frozenset({"length"}), decode=True)
    prompt = FAMILIES["qwen2_vl"].prepare(model, request, {})
    made = Generation.of(prompt, request)
    separate = Separate.of(Program(made.trace()))
    asked = dict(zip(made.logits.names, prompt.inputs, strict=True))
    ids, visual = asked["input_ids"], made.logits.visual
    every = Plan((Stage("decoder:0", "stride", visual.count),), 1.0)
    wanted = model.generate(
        input_ids=ids,
        pixel_values=asked["pixel_values"],
        image_grid_thw=visual.constants["image_grid_thw"].as_subclass(Tensor),
        **visual.types(ids),
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=None,
    )
    assert int(asked["position_ids"].max()) + 1 < ids.shape[1], "positions are not counted"
    assert torch.equal(in_torch(separate, every, asked, 10), wanted[:, ids.shape[1] :])


@pytest.mark.exhaustive
def test_a_mask_for_all_layers_bars_stages_inside_the_decoder() -> None:
    plan, separate = Plan((Stage("decoder:1", "stride", 9),), 0.625), two_layers(padding=True)
    facts = with_followers(analyse(separate.joined), separate)
    with pytest.raises(UnsupportedError, match="'decode' takes all of one length") as refused:
        refuse_stages(facts, plan)
    assert "vision:end, decoder:0" in str(refused.value.expected)
    applied = apply_plan(separate.joined, plan, find_method)
    with pytest.raises(UnsupportedError, match="'past_0' and 'past_2' of one length"):
        separate.parted(applied)


def test_prompts_padded_behind_or_between_their_tokens_do_not_go_on(half: Artifact) -> None:
    asked = padded(12, (0, 0), seed=6)
    for place, message in ((-1, "behind its last token"), (-4, "between its tokens")):
        mask = asked["attention_mask"].clone()
        mask[1, place] = 0
        with pytest.raises(InputError, match=message):
            half.generate({**asked, "attention_mask": mask}, max_new_tokens=2, stop=())


def test_a_decode_mask_is_given_for_the_whole_prompt_and_cut_like_the_cache(
    half: Artifact,
) -> None:
    asked = padded(12, (0, 5))
    token = torch.tensor([[3], [4]])
    told = {
        "decode_input_ids": token,
        "position_ids": torch.full_like(token, asked["input_ids"].shape[1]),
        "decode_attention_mask": torch.cat([asked["attention_mask"], torch.ones_like(token)], 1),
    }
    first, both = half(asked), half({**asked, **told})
    zeros = torch.tensor([[0] * 0 + [1] * 31, [0] * 5 + [1] * 26])
    assert first["past_0"].shape[2] == 30
    step = half.program("decode")(
        input_ids=token,
        position_ids=told["position_ids"],
        attention_mask=zeros,
        **{name: rows for name, rows in first.items() if name.startswith("past_")},
    )
    assert torch.equal(both["decode_logits"], step["logits"])


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a processor of transformers whose words are w0, w1, ... and <image>."""
    folder = tmp_path_factory.mktemp("processor")
    words = {**{f"w{i}": i for i in range(llava.TEXT_VOCABULARY)}, "<image>": llava.IMAGE_TOKEN}
    rule = Tokenizer(WordLevel(words, unk_token="w0"))
    rule.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rule, eos_token="w7", additional_special_tokens=["<image>"]
    )
    side = {"height": llava.IMAGE_SIZE, "width": llava.IMAGE_SIZE}
    LlavaProcessor(
        CLIPImageProcessor(size=side, do_center_crop=False),
        tokenizer,
        patch_size=llava.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    Image.new("RGB", (60, 50), (200, 30, 90)).save(folder / "red.png")
    return folder


def test_run_streams_the_words_that_continue_a_picture_and_a_prompt(
    half: Artifact, processor: Path, capfd: Capture
) -> None:
    line = ["run", str(half.folder), "--prompt", "w5 <image> w9 w11"]
    line += ["--image", str(processor / "red.png"), "--processor", str(processor)]
    assert main([*line, "--max-new-tokens", "6", "--stop", "none"]) == 0
    words = capfd.readouterr().out.strip().split(" ")
    read = AutoProcessor.from_pretrained(processor)
    with Image.open(processor / "red.png") as picture:
        made = read(text="w5 <image> w9 w11", images=[picture], return_tensors="pt")
    wanted = half.generate(dict(made), max_new_tokens=6, stop=())[0].tolist()
    assert words == [f"w{token}" for token in wanted]
    ends = ["--max-new-tokens", "6", "--stop", str(wanted[2]), "--json"]
    assert main([*line, *ends]) == 0
    said = json.loads(capfd.readouterr().out)
    first = wanted[: wanted.index(wanted[2]) + 1]
    assert (said["tokens"], said["text"]) == ([first], [" ".join(f"w{t}" for t in first)])
    # Without --stop the tokenizer says it, and what the model's own generation_config.json adds.
    (processor / "generation_config.json").write_text(json.dumps({"eos_token_id": [wanted[1]]}))
    assert ending_tokens(str(processor), read) == {7, wanted[1]}
    assert main([*line, "--json"]) == 0
    (tokens,) = json.loads(capfd.readouterr().out)["tokens"]
    assert tokens[-1] in {7, wanted[1]} and len(tokens) <= 2


def test_run_makes_tokens_of_tensors_and_refuses_options_that_do_not_go_together(
    half: Artifact, tmp_path: Path, capfd: Capture
) -> None:
    inputs, out = str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")
    position = torch.tensor([[llava.VISUAL + 4]])
    save_file({**padded(4, (0,)), "position_ids": position}, inputs)
    line = ["run", str(half.folder)]
    warm = ["--temperature", "3", "--seed", "4", "--top-p", "0.9"]
    made = []
    for more in ([], [], warm):
        asked = [*line, "--inputs", inputs, "--max-new-tokens", "5", "--stop", "none", *more]
        assert main([*asked, "-o", out]) == 0
        made.append(capfd.readouterr().out.split())
        assert load_file(out)["tokens"].tolist() == [[int(token) for token in made[-1]]]
    assert made[0] == made[1] != made[2]
    for options, message in (
        (["--inputs", inputs, "--max-new-tokens", "5"], "there are no stop ids"),
        (["--inputs", inputs, "--stop", "1"], "how many tokens"),
        (["--inputs", inputs, "--prompt", "w1"], "from a prompt or from tensors"),
        (["--inputs", inputs, "--image", "a.png"], "a picture needs a prompt"),
        (["--prompt", "w1"], "through a processor"),
        (["--prompt", "w1", "--processor", str(tmp_path / "none")], "cannot be loaded"),
        (["--inputs", inputs, "--stop", "1,x", "--max-new-tokens", "5"], "no list of token ids"),
        (["--inputs", inputs, "--max-new-tokens", "5", "--stop", "1", "--trace"], "one run"),
    ):
        assert main([*line, *options]) == 2
        assert message in capfd.readouterr().err


@dataclass(frozen=True)
class Built:
    program: Program
    artifact: Artifact


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Half of the visual rows, on ONNX Runtime."""
    program = Program(parts(SIZES, dynamic=True))
    place = tmp_path_factory.mktemp("generate") / "half"
    made = tokopt.compile(program, place, plan=PLAN, target="onnxruntime-cpu")
    return Built(program, tokopt.load(made.folder))


def given(batch: int = 2, seed: int = 5) -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, batch, 9, seed)
    return {"pixels": pixels, "input_ids": ids}


def hand_by_oracle(program: Program, asked: dict[str, Tensor], steps: int) -> Tensor:
    """Greedy tokens of the original programs, full caches, the dropped rows masked."""
    separate = Separate.of(program)
    free = run_oracle(analyse(separate.joined), PLAN, asked, find_method)
    logits, *caches = free.outputs.values()
    assert all(bool(rows.isnan().any()) for rows in caches)
    decode, made = analyse(separate.program.graphs["decode"]), [logits[:, -1].argmax(-1)]
    for step in range(steps - 1):
        place = torch.full_like(made[-1], asked["input_ids"].shape[1] + step)
        past = {f"cache_{i}": rows.float() for i, rows in enumerate(caches)}
        told = {"input_ids": made[-1][:, None], "positions": place[:, None], **past}
        logits, *new = run_masked(decode, told).values()
        caches = [torch.cat([a.double(), b], 2) for a, b in zip(caches, new, strict=True)]
        made.append(logits[:, -1].argmax(-1))
    return torch.stack(made, 1)


@pytest.mark.exhaustive
def test_new_rows_of_three_programs_caches_give_the_masked_oracles_tokens(hand: Built) -> None:
    asked = given()
    got = hand.artifact.generate(asked, max_new_tokens=8, stop=())
    assert torch.equal(got, hand_by_oracle(hand.program, asked, 8))
    assert len(got[0].unique()) > 2 and not torch.equal(got[0], got[1])


class Heard:
    """A streamer that writes down."""

    def __init__(self) -> None:
        self.tokens, self.ended = list[Tensor](), 0

    def put(self, value: Tensor) -> None:
        self.tokens.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.exhaustive
def test_an_item_ends_at_a_stop_id_and_the_run_when_all_have(hand: Built) -> None:
    free = hand.artifact.generate(given(), max_new_tokens=8, stop=())
    stop, heard = {int(free[0, 2]), int(free[1, 4])}, Heard()
    got = hand.artifact.generate(given(), max_new_tokens=8, stop=stop, streamer=heard)
    ends = [next(t for t in range(8) if int(row[t]) in stop) for row in free]
    assert got.shape[1] == max(ends) + 1 < 8
    for row, wanted, end in zip(got, free, ends, strict=True):
        assert torch.equal(row[: end + 1], wanted[: end + 1])
        assert bool((row[end:] == wanted[end]).all())
    assert torch.equal(torch.stack(heard.tokens, 1), got) and heard.ended == 1


@pytest.mark.exhaustive
def test_sampling_repeats_with_its_seed_and_a_tiny_nucleus_is_greedy(hand: Built) -> None:
    def drawn(sampling: Sampling) -> Tensor:
        return hand.artifact.generate(given(), max_new_tokens=5, stop=(), sampling=sampling)

    warm = Sampling(temperature=2.0, seed=3)
    assert torch.equal(drawn(warm), drawn(warm))
    assert not torch.equal(drawn(warm), drawn(Sampling(temperature=2.0, seed=4)))
    assert torch.equal(drawn(Sampling(temperature=2.0, top_p=1e-6)), drawn(Sampling()))


@pytest.mark.exhaustive
def test_what_fits_no_run_is_refused_before_a_token_is_made(hand: Built) -> None:
    run, asked = hand.artifact.generate, given()
    with pytest.raises(InputError, match="there are no stop ids"):
        run(asked, max_new_tokens=2)
    with pytest.raises(InputError, match="no token 100000 to stop at"):
        run(asked, max_new_tokens=2, stop={100000})
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        run(asked, max_new_tokens=0, stop=())
    with pytest.raises(InputError, match="the cache overflows"):
        run(asked, max_new_tokens=SIZES.longest, stop=())
    with pytest.raises(InputError, match="does not fit"):
        run({**asked, "pixels": asked["pixels"][:1]}, max_new_tokens=2, stop=())
    with pytest.raises(InputError, match="the position of the first new token does not fit"):
        run(asked, max_new_tokens=2, stop=(), position=torch.ones(1, 1, dtype=torch.int64))
    with pytest.raises(InputError, match="choose no token"):
        Sampling(temperature=-1.0)
    # Short rows leave room in the cache; the positions count the prompt as it was.
    room = SIZES.longest - asked["input_ids"].shape[1] + 1
    assert run(asked, max_new_tokens=room, stop=()).shape[1] == room
    with pytest.raises(InputError, match=f"has {SIZES.longest} positions"):
        run(asked, max_new_tokens=room + 1, stop=())
    with pytest.raises(UnsupportedError, match="does not generate"):
        hand.artifact.program("decode").generate(asked, max_new_tokens=2, stop=())


@pytest.mark.exhaustive
def test_the_new_rows_of_a_cache_and_the_table_of_positions_are_found() -> None:
    graphs = {n: normalize(g) for n, g in parts(SIZES, dynamic=True).items()}
    found = find_decoding(graphs, find_links(graphs), "prefill")
    assert found is not None and (found.token, found.position) == ("input_ids", "positions")
    assert found.caches == tuple(Cache(f"cache_{i}", f"output_{i + 1}", 2, False) for i in range(4))
    assert (found.places, found.mask, found.padding) == (SIZES.longest, None, None)


def test_a_cache_that_comes_back_whole_and_its_mask_are_found(half: Artifact) -> None:
    found = half.manifest.decoding
    assert found is not None and (found.token, found.position) == ("input_ids", "position_ids")
    assert found.caches == tuple(Cache(f"past_{i}", f"present_{i}", 2, True) for i in range(2))
    assert (found.mask, found.padding, found.places) == ("attention_mask", "attention_mask", None)
