"""Zoo models, analysed once per test process."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from testsuite.passes import flat_vit, text_encoders
from testsuite.zoo import dinov2, handvit, llava, qwen2_5_vl, qwen2_5_vl_images, random_transformer
from testsuite.zoo.sample import Sample
from torch import Tensor

from tokopt.ir.facts import Facts, TokenStack, analyse
from tokopt.passes.normalize import normalize
from tokopt.passes.observe import Observation, observe

BUILDERS: dict[str, Callable[[], Sample]] = {
    "llava": lambda: llava.build(2),
    "llava_dynamic": lambda: llava.build(dynamic=True),
    "llava_explicit": lambda: llava.build(2, attention="eager"),
    "qwen": qwen2_5_vl.build,
    "dino": dinov2.build,
    "handvit": handvit.build,
    "flat": flat_vit.build,
    "clip_text": text_encoders.clip,
    "t5_encoder": text_encoders.t5_encoder,
    "t5_reader": text_encoders.t5_reader,
    "llava_short": lambda: llava.build(2, layers=3),
    "qwen_short": lambda: qwen2_5_vl.build(layers=2),
    "qwen_images": qwen2_5_vl_images.build,
    "qwen_uneven": lambda: qwen2_5_vl.build(grid=(1, 8, 10), layers=2),
    "dino_short": lambda: dinov2.build(layers=3),
    "handvit_short": lambda: handvit.build(depth=3),
    "random1": lambda: random_transformer.sample(1),
    "random4": lambda: random_transformer.sample(4),
    "random5": lambda: random_transformer.sample(5),
}


@dataclass(frozen=True)
class Analysed:
    sample: Sample
    facts: Facts

    def stack(self, role: str) -> TokenStack:
        return next(stack for stack in self.facts.stacks if stack.role == role)

    def named(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        names = self.sample.exported.graph_signature.user_inputs
        return dict(zip(names, inputs, strict=True))  # type: ignore[arg-type]

    def observed(self) -> Observation:
        return observe(self.facts, self.named(self.sample.inputs))


@functools.cache
def analysed(name: str) -> Analysed:
    sample = BUILDERS[name]()
    return Analysed(sample, analyse(normalize(sample.exported)))
