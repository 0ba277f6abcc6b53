"""The oracle on exported library models, against their own layers run on the rows that are left."""

from __future__ import annotations

import torch
from testsuite.passes.oracle.library_rows import (
    Prompt,
    run_decoder,
    run_qwen_tower,
    run_tower,
)
from testsuite.passes.oracle.sample_methods import METHODS
from testsuite.zoo import dinov2, handvit, llava, qwen2_5_vl
from testsuite.zoo.sample import Sample
from torch import Tensor

from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.oracle import OracleResult, run_oracle


def run(sample: Sample, stages: list[Stage], inputs: tuple[Tensor, ...]) -> OracleResult:
    facts = analysed(sample)
    names = [s.arg.name for s in facts.exported.graph_signature.input_specs if not s.target]
    given = dict(zip(names, inputs, strict=True))
    return run_oracle(facts, Plan(tuple(stages)), given, METHODS.__getitem__)


def analysed(sample: Sample) -> Facts:
    if sample.name not in FACTS:
        FACTS[sample.name] = analyse(normalize(sample.exported))
    return FACTS[sample.name]


FACTS: dict[str, Facts] = {}


def check(result: OracleResult, want: Tensor, places: Tensor | None) -> None:
    (found,) = result.outputs.values()
    if places is not None:
        index = places[..., None].expand(-1, -1, found.shape[-1])
        want = torch.full_like(found, torch.nan).scatter(1, index, want)
    torch.testing.assert_close(found, want, equal_nan=True, rtol=1e-4, atol=1e-4)


def stages(vision: dict[int, int], decoder: dict[int, int], layers: int) -> list[Stage]:
    found = [Stage(f"vision:{'end' if d == layers else d}", "length", k) for d, k in vision.items()]
    return found + [Stage(f"decoder:{d}", "length", k) for d, k in decoder.items()]


def test_llava_is_what_its_layers_give_on_the_rows_that_stay() -> None:
    sample = llava.build(dynamic=True)
    model, core = sample.eager.model, sample.eager.model.model
    for vision, decoder in (({}, {2: 5}), ({1: 20}, {}), ({2: 30, 3: 18}, {0: 9, 3: 4})):
        for pixels, ids in sample.all_inputs[2:4]:
            result = run(sample, stages(vision, decoder, 3), (pixels, ids))
            with torch.no_grad():
                tower = core.vision_tower
                x = tower.pre_layrnorm(tower.embeddings(pixels))
                x, left = run_tower(tower.encoder.layers[:3], x, 1, vision)
                visual = core.multi_modal_projector(x[:, 1:])
                positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
                prompt = Prompt(ids, llava.IMAGE_TOKEN, positions)
                want, places = run_decoder(model, prompt, visual, left[:, 1:] - 1, decoder)
            check(result, want, places)


def test_qwen_is_what_its_layers_give_on_the_rows_that_stay() -> None:
    sample = qwen2_5_vl.build()
    pixels, ids, positions = sample.other_inputs[0]
    prompt = Prompt(ids, qwen2_5_vl.IMAGE_TOKEN, positions)
    for vision, decoder in (({}, {1: 7}), ({3: 72, 4: 40}, {}), ({3: 48}, {0: 9, 3: 1})):
        result = run(sample, stages(vision, decoder, 4), (pixels, ids, positions))
        with torch.no_grad():
            visual, left = run_qwen_tower(sample.eager.model.model, pixels, (8, 12), vision)
            want, places = run_decoder(sample.eager.model, prompt, visual, left, decoder)
        check(result, want, places)


def test_dinov2_with_registers_is_what_its_layers_give_on_the_rows_that_stay() -> None:
    sample = dinov2.build(2, with_class=True)
    backbone = sample.eager.backbone
    for vision in ({1: 9}, {0: 30, 2: 20, 4: 3}):
        (pixels,) = sample.other_inputs[0]
        result = run(sample, stages(vision, {}, 4), (pixels,))
        with torch.no_grad():
            layers = getattr(backbone.encoder, "layer", None) or backbone.encoder.layers
            x, _ = run_tower(list(layers), backbone.embeddings(pixels), 5, vision)
            x = backbone.layernorm(x)
            want = sample.eager.head(torch.cat([x[:, 0], x[:, 5:].mean(1)], -1))
        check(result, want, None)


def test_a_hand_written_vit_is_what_its_blocks_give_on_the_rows_that_stay() -> None:
    sample = handvit.build(dynamic=True)
    model = sample.eager
    plans = {3: 2}, {1: 9}, {0: 30, 2: 20, 4: 3}
    blocks = [lambda x, b=b, **_: b(x) for b in model.blocks]
    for images, vision in zip(sample.all_inputs, plans, strict=False):
        result = run(sample, stages(vision, {}, 4), images)
        with torch.no_grad():
            first = model.first_row.expand(len(images[0]), -1, -1)
            x = torch.cat([first, model.patchify(images[0]).flatten(2).transpose(1, 2)], 1)
            x, _ = run_tower(blocks, x + model.place, 1, vision)
            want = model.head(model.norm(x)[:, 0])
        check(result, want, None)
