"""Generation: greedy tokens are transformers' own; below budget 1 those of the masked oracle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from testsuite.zoo import llava
from testsuite.zoo.caching import prefill_and_decode
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from torch import Tensor

import tokopt
from tokopt.cli.capture_request import Request
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


@pytest.fixture(scope="module")
def tiny() -> tuple[object, Program]:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    request = Request(dynamic=frozenset({"length"}))
    return model, Program(prefill_and_decode(model, request, whole=True))


def test_at_budget_one_greedy_tokens_are_those_of_transformers(
    tiny: tuple[llava.LlavaForConditionalGeneration, Program], tmp_path: Path
) -> None:
    model, program = tiny
    made = tokopt.compile(program, tmp_path / "whole", budget=1.0, method="stride", target="eager")
    artifact = tokopt.load(made.folder)
    for length in (llava.VISUAL + 4, llava.VISUAL + 11):
        pixels, ids = llava.inputs(1, length, seed=length)
        wanted = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )
        names = [spec.name for spec in made.manifest.signature.inputs][:2]
        got = artifact.generate(
            dict(zip(names, (pixels, ids), strict=True)), max_new_tokens=12, stop=()
        )
        assert torch.equal(got, wanted[:, length:])
        assert len(got.unique()) > 2


def test_a_cache_that_comes_back_whole_is_found_behind_an_empty_one(
    tiny: tuple[object, Program],
) -> None:
    graphs = {name: normalize(graph) for name, graph in tiny[1].graphs.items()}
    found = find_decoding(graphs, find_links(graphs), "prefill")
    assert found is not None and (found.token, found.position) == ("token", "position")
    assert found.caches == tuple(Cache(f"past_{i}", f"output_{i + 1}", 2, True) for i in range(4))
    assert found.places is None
