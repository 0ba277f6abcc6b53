"""Generation: greedy tokens are transformers' own; below budget 1 those of the masked oracle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from testsuite.zoo import llava
from testsuite.zoo.caching import prefill_and_decode
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
from tokopt.cli.capture_request import Request
from tokopt.cli.main import main
from tokopt.cli.processor import ending_tokens
from tokopt.cli.separate import Separate
from tokopt.ir.decoding import Cache, find_decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.links import find_links
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.program import Program
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.oracle import run_masked, run_oracle
from tokopt.targets.runtime import Artifact
from tokopt.targets.sampling import Sampling

SIZES = Sizes(layers=2, tower_layers=2)
Capture = pytest.CaptureFixture[str]
PLAN = Plan((Stage("vision:1", "stride", SIZES.visual // 2),), 0.5)


@dataclass(frozen=True)
class Built:
    program: Program
    artifact: Artifact


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Half of the visual rows, on ONNX Runtime."""
    program = Program(parts(SIZES, dynamic=True))
    place = tmp_path_factory.mktemp("generate") / "half"
    made = tokopt.compile(program, place, plan=PLAN, target="onnxruntime-cpu")
    return Built(program, tokopt.load(made.folder))


def given(batch: int = 2, seed: int = 5) -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, batch, 9, seed)
    return {"pixels": pixels, "input_ids": ids}


def by_oracle(program: Program, asked: dict[str, Tensor], steps: int) -> Tensor:
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


def test_below_budget_one_greedy_tokens_are_the_masked_oracles(half: Built) -> None:
    asked = given()
    got = half.artifact.generate(asked, max_new_tokens=8, stop=())
    assert torch.equal(got, by_oracle(half.program, asked, 8))
    assert len(got[0].unique()) > 2 and not torch.equal(got[0], got[1])


class Heard:
    """A streamer that writes down."""

    def __init__(self) -> None:
        self.tokens, self.ended = list[Tensor](), 0

    def put(self, value: Tensor) -> None:
        self.tokens.append(value)

    def end(self) -> None:
        self.ended += 1


def test_an_item_ends_at_a_stop_id_and_the_run_when_all_have(half: Built) -> None:
    free = half.artifact.generate(given(), max_new_tokens=8, stop=())
    stop, heard = {int(free[0, 2]), int(free[1, 4])}, Heard()
    got = half.artifact.generate(given(), max_new_tokens=8, stop=stop, streamer=heard)
    ends = [next(t for t in range(8) if int(row[t]) in stop) for row in free]
    assert got.shape[1] == max(ends) + 1 < 8
    for row, wanted, end in zip(got, free, ends, strict=True):
        assert torch.equal(row[: end + 1], wanted[: end + 1])
        assert bool((row[end:] == wanted[end]).all())
    assert torch.equal(torch.stack(heard.tokens, 1), got) and heard.ended == 1


def test_sampling_repeats_with_its_seed_and_a_tiny_nucleus_is_greedy(half: Built) -> None:
    def drawn(sampling: Sampling) -> Tensor:
        return half.artifact.generate(given(), max_new_tokens=5, stop=(), sampling=sampling)

    warm = Sampling(temperature=2.0, seed=3)
    assert torch.equal(drawn(warm), drawn(warm))
    assert not torch.equal(drawn(warm), drawn(Sampling(temperature=2.0, seed=4)))
    assert torch.equal(drawn(Sampling(temperature=2.0, top_p=1e-6)), drawn(Sampling()))


def test_what_fits_no_run_is_refused_before_a_token_is_made(half: Built) -> None:
    run, asked = half.artifact.generate, given()
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
        half.artifact.program("decode").generate(asked, max_new_tokens=2, stop=())


@dataclass(frozen=True)
class Whole:
    """A model of transformers, its programs, and the artifact at budget 1."""

    model: llava.LlavaForConditionalGeneration
    program: Program
    artifact: Artifact


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    request = Request(dynamic=frozenset({"length"}))
    program = Program(prefill_and_decode(model, request, whole=True))
    place = tmp_path_factory.mktemp("generate") / "whole"
    made = tokopt.compile(program, place, budget=1.0, method="stride", target="eager")
    return Whole(model, program, tokopt.load(made.folder))


def by_transformers(whole: Whole, pixels: Tensor, ids: Tensor, most: int) -> Tensor:
    made = whole.model.generate(
        input_ids=ids,
        pixel_values=pixels,
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=None,
    )
    return made[:, ids.shape[1] :]


def test_at_budget_one_greedy_tokens_are_those_of_transformers(whole: Whole) -> None:
    for length in (llava.VISUAL + 4, llava.VISUAL + 11):
        pixels, ids = llava.inputs(1, length, seed=length)
        asked = {"pixel_values": pixels, "input_ids": ids}
        got = whole.artifact.generate(asked, max_new_tokens=12, stop=())
        assert torch.equal(got, by_transformers(whole, pixels, ids, 12))
        assert len(got.unique()) > 2


def test_a_cache_that_comes_back_whole_is_found_behind_an_empty_one(whole: Whole) -> None:
    graphs = {name: normalize(graph) for name, graph in whole.program.graphs.items()}
    found = find_decoding(graphs, find_links(graphs), "prefill")
    assert found is not None and (found.token, found.position) == ("token", "position")
    assert found.caches == tuple(Cache(f"past_{i}", f"output_{i + 1}", 2, True) for i in range(4))
    assert found.places is None


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
    whole: Whole, processor: Path, capfd: Capture
) -> None:
    line = ["run", str(whole.artifact.folder), "--prompt", "w5 <image> w9 w11"]
    line += ["--image", str(processor / "red.png"), "--processor", str(processor)]
    assert main([*line, "--max-new-tokens", "6", "--stop", "none"]) == 0
    words = capfd.readouterr().out.strip().split(" ")
    read = AutoProcessor.from_pretrained(processor)
    with Image.open(processor / "red.png") as picture:
        asked = read(text="w5 <image> w9 w11", images=[picture], return_tensors="pt")
    wanted = by_transformers(whole, asked["pixel_values"], asked["input_ids"], 6)[0].tolist()
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
    whole: Whole, tmp_path: Path, capfd: Capture
) -> None:
    pixels, ids = llava.inputs(1, llava.VISUAL + 4, seed=2)
    inputs, out = str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")
    position = torch.tensor([[ids.shape[1]]])
    save_file({"pixel_values": pixels, "input_ids": ids, "position": position}, inputs)
    line = ["run", str(whole.artifact.folder)]
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
