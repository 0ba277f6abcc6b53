"""Train a small model: PYTHONPATH=. python testsuite/models/train.py --model NAME --out DIR.

First the tower alone, on crowded pictures; then everything; at last half of the batches whole.
What makes it fast (losses.py has the first):
- The tower is taught to spell what each patch shows.  It sees some of the patches only, all that
  digits touch among them (patch dropout), and while alone, pictures with 18 digits.
- Many questions on one picture.  A question sees the picture and itself, with the position ids it
  would have alone, so this is exactly one question a sequence, many times cheaper.
- The decoder sees the patch of every digit's centre and a random part of the rest (14, 24 or all
  that the tower saw, at their own position ids): cheap, and it makes the model sound under token
  selection, as large models are.  Patches that a digit merely grazes may be dropped.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from testsuite.models.canvas import TOKENS, Scenes, pixel_values, scenes
from testsuite.models.digits import KINDS, ask, samples
from testsuite.models.family import FAMILIES, Family, last_logits
from testsuite.models.losses import Spelling, answer_loss
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TOWER, CROWDED = 35, 44  # patches that the tower sees under patch dropout
ASKED = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 4])  # kinds of the questions on one picture


def _fp32_attention(
    module: nn.Module, *operands: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention outside autocast: its bfloat16 kernels are slower on CPUs than the fp32 ones."""
    query, key, value, mask = operands
    with torch.autocast("cpu", enabled=False):
        full = query.float(), key.float(), value.float()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *full, mask, **options)


def centres(seen: Scenes) -> np.ndarray:
    """Bool [B, TOKENS]: the patches in which a digit has its centre."""
    mask = np.zeros(seen.patches.shape, bool)
    real = np.arange(seen.digit.shape[1]) < seen.count[:, None]
    item, slot = np.nonzero(real)
    mask[item, seen.cell[item, slot]] = True
    return mask


def draw(order: np.ndarray, keep: int) -> torch.Tensor:
    """The ``keep`` patches of lowest order [B, TOKENS], as ascending indices [B, keep]."""
    return torch.from_numpy(np.sort(np.argpartition(order, keep - 1, axis=1)[:, :keep], axis=1))


def inherit(model: Any, archive: Path) -> None:
    """Start with the words and the decoder of another trained model; biases it lacks are zero."""
    theirs = torch.export.load(archive).state_dict
    mine, ours = model.state_dict(), ("model.language_model.", "lm_head.")
    for name, value in mine.items():
        if name.startswith(ours):
            value.copy_(theirs[f"model.{name}"]) if f"model.{name}" in theirs else value.zero_()


@torch.no_grad()
def accuracy(family: Family, model: Any, seed: int, size: int) -> list[float]:
    """The part answered right on held-out digits, one number per kind."""
    asked = samples(seed, size)
    answers = []
    for pixels, ids in zip(asked.pixel_values.split(64), asked.input_ids.split(64), strict=True):
        rows, _ = family.visual_rows(model, pixels)
        answers.append(last_logits(family, model, rows, ids).argmax(-1))
    right = torch.cat(answers) == asked.answers
    return [right[asked.kinds == k].float().mean().item() for k in range(len(KINDS))]


def main() -> None:
    """Run the schedule; a checkpoint every 100 steps, from which the same command goes on."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--model", choices=FAMILIES, required=True)
    flags.add_argument("--decoder", type=Path, help="an archive whose decoder is the start")
    flags.add_argument("--tower", type=int, default=1200, help="steps for the tower alone")
    flags.add_argument("--steps", type=int, default=2800, help="all steps")
    flags.add_argument("--batch", type=int, default=64)
    flags.add_argument("--rate", type=float, default=1.5e-3)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--stop", type=int, default=10**9)
    args = flags.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    ALL_ATTENTION_FUNCTIONS.register("fp32", _fp32_attention)
    family = FAMILIES[args.model]
    model, spelling = family.fresh().train(), Spelling()
    model.set_attn_implementation("fp32")
    halves = torch.autocast("cpu", torch.bfloat16)  # of the linear layers: 1.3 times faster
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    if args.decoder:
        inherit(model, args.decoder)
    both = nn.ModuleDict({"model": model, "spelling": spelling})
    optimiser = torch.optim.AdamW(both.parameters(), args.rate, (0.9, 0.98), weight_decay=0.02)
    step, state = 0, args.out / "optimiser.pt"
    if state.exists():
        both.load_state_dict(load_file(args.out / "both.safetensors"))
        saved = torch.load(state, weights_only=True)
        optimiser.load_state_dict(saved["optimiser"])
        step = saved["step"]

    started, shown = time.time(), []
    while step < min(args.steps, args.stop):
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimiser.param_groups:
            group["lr"] = args.rate * rate + 1e-5
        rng = np.random.default_rng([args.seed, step])
        crowded = step < args.tower or step % 4 == 0
        whole = rng.random() < (0 if crowded or step < 0.7 * args.steps else 0.5)
        size = args.batch // 2 if whole else args.batch
        seen = scenes(int(rng.integers(2**62)), size, "train", crowded=crowded)
        order = rng.random((size, TOKENS))
        index = draw(order - seen.patches, TOKENS if whole else CROWDED if crowded else TOWER)
        with halves:
            pixels = pixel_values(seen.pixels)
            rows, summary = family.visual_rows(model, pixels, None if whole else index)
        rows, summary = rows.float(), summary.float()
        words = model.get_input_embeddings().weight
        if args.decoder and step < args.tower:
            words = words.detach()  # the decoder knows what they mean
        spelt, right = spelling(rows, index, summary, words, seen)
        loss, answer = spelt, torch.zeros(())
        if not crowded:
            keep = int(rng.choice([14, 24, TOKENS if whole else TOWER]))
            present = np.zeros(order.shape, bool)
            np.put_along_axis(present, index.numpy(), True, 1)
            index = draw(rng.random(order.shape) + 2 * ~present - centres(seen), keep)
            questions, answers = ask(rng, seen, np.tile(ASKED, (size, 1)))
            asked = torch.from_numpy(questions), torch.from_numpy(answers)
            with halves:
                answer = answer_loss(family, model, rows, index, *asked)
            loss = answer + 0.2 * spelt
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        step += 1
        shown.append((spelt.item(), right, answer.item()))
        if step % 50 == 0:
            means = np.mean(shown, 0)
            lost = np.mean([a for _, _, a in shown if a > 0] or [math.nan])
            print(f"{step} spelling {means[0]:.3f} digit {means[1]:.3f}", end=" ")
            print(f"answer {lost:.3f} {time.time() - started:.0f} s", flush=True)
            shown = []
        if step % 100 == 0 or step == args.steps:
            save_file(both.state_dict(), args.out / "both.safetensors")
            torch.save({"optimiser": optimiser.state_dict(), "step": step}, state)
        if step % 200 == 0 and step > args.tower:
            model.eval().set_attn_implementation("sdpa")
            parts = [round(part, 3) for part in accuracy(family, model, 7, 500)]
            print(step, "held out", dict(zip(KINDS, parts, strict=True)), flush=True)
            model.train().set_attn_implementation("fp32")


if __name__ == "__main__":
    main()
