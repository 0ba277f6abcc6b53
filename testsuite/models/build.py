"""Export the trained model: PYTHONPATH=. python testsuite/models/build.py [--checkpoint FILE].

Writes digits-llava.pt2 beside this file: forward(pixel_values, input_ids) -> logits, with dynamic
batch and prompt length.  The archive carries the weights and is their only copy; ``trained`` loads
them back out of it.  (torch.export.load trusts its file: only for the archive of this repository.)
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from testsuite.models.digits import WHAT, samples
from testsuite.models.model import llava, visual_rows
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

ARCHIVE = Path(__file__).with_name("digits-llava.pt2")


class Answering(nn.Module):
    """What is exported: pixel_values [B, 3, 144, 144], input_ids [B, S] -> logits [B, S, WORDS]."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Prefill without cache.

        LLaVA's own forward turns the image features into a list, which fixes the batch size; so
        they are handed to it by its door for features computed elsewhere.
        """
        rows, _ = visual_rows(self.model, pixel_values)
        image = BaseModelOutputWithPooling()
        image.pooler_output = [rows.flatten(0, 1)]  # type: ignore[assignment]
        return self.model(
            input_ids=input_ids, mm_encoder_outputs={"image": image}, use_cache=False
        ).logits


def trained(archive: Path = ARCHIVE) -> LlavaForConditionalGeneration:
    """The eager model with the weights of the archive."""
    model = llava()
    Answering(model).load_state_dict(torch.export.load(archive).state_dict)
    return model


def export(model: LlavaForConditionalGeneration) -> ExportedProgram:
    """The exported program: batch 1 to 256, prompts up to 512."""
    asked = samples(0, 2)
    batch, length = Dim("batch", max=256), Dim("length", min=146, max=512)
    program = torch.export.export(
        Answering(model).eval(),
        (asked.pixel_values, asked.input_ids),
        dynamic_shapes={"pixel_values": {0: batch}, "input_ids": {0: batch, 1: length}},
        strict=False,
    )
    # tracing needs two items, the archive only one; a copy, or the storage of both is written
    program.example_inputs = ((asked.pixel_values[:1].clone(), asked.input_ids[:1].clone()), {})
    return program


@torch.no_grad()
def difference(program: ExportedProgram, model: LlavaForConditionalGeneration) -> float:
    """The largest difference of logits between the two, over other batches and lengths."""
    worst = 0.0
    for size, extra in ((1, 0), (3, 5), (5, 1)):
        asked = samples(size, size)
        more = torch.full((size, extra), WHAT)
        ids = torch.cat([more, asked.input_ids], 1)
        mine = program.module()(asked.pixel_values, ids)
        worst = max(worst, (mine - Answering(model)(asked.pixel_values, ids)).abs().max().item())
    return worst


def main() -> None:
    """Export, compare with eager, write."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--checkpoint", type=Path, help="safetensors of train.py; else the archive")
    flags.add_argument("--out", type=Path, default=ARCHIVE)
    args = flags.parse_args()
    torch.set_num_threads(1)
    if args.checkpoint:
        model, prefix = llava(), "model."
        state = load_file(args.checkpoint).items()
        model.load_state_dict({k[len(prefix) :]: v for k, v in state if k.startswith(prefix)})
    else:
        model = trained()
    torch.export.save(export(model), args.out)
    worst = difference(torch.export.load(args.out), model)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, off eager by {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit("the exported program differs from the eager model")


if __name__ == "__main__":
    main()
