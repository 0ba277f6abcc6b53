"""Answer options: those with which ``tokopt run`` makes tokens, and which go together."""

from __future__ import annotations

import argparse

from tokopt.ir.errors import InputError

MOST = 128
"""New tokens of a prompt where ``--max-new-tokens`` is not given."""

OPTIONS = ("image", "prompt", "max_new_tokens", "processor", "stop", "temperature", "top_p", "seed")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that make ``run`` generate."""
    group = parser.add_argument_group("making tokens (an artifact with prefill and decode)")
    group.add_argument(
        "--prompt", metavar="TEXT", help="put into the processor's chat template where it has one"
    )
    group.add_argument(
        "--image", action="append", metavar="FILE", help="a picture of the prompt (several: again)"
    )
    group.add_argument(
        "--processor", metavar="NAME", help="folder or name of a transformers processor"
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"make up to N tokens, also from --inputs ({MOST} for a --prompt)",
    )
    group.add_argument(
        "--stop",
        type=_ids,
        metavar="ID,ID",
        help="tokens that end an answer, or 'none' (default: what the processor says)",
    )
    group.add_argument("--temperature", type=float, help="draw tokens; 0 takes the likeliest (0)")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest P (1)")
    group.add_argument("--seed", type=int, help="of what is drawn (0)")


def asks_for_tokens(args: argparse.Namespace) -> bool:
    """Return whether any option was given that makes ``run`` generate."""
    return any(getattr(args, option) is not None for option in OPTIONS)


def check_options(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for options that do not go together."""
    if (args.inputs is None) == (args.prompt is None):
        raise InputError(
            "tokens are made from a prompt or from tensors",
            expected="either --prompt (with --image and --processor) or --inputs",
        )
    if args.prompt is None and args.image is not None:
        raise InputError("a picture needs a prompt", expected="--image with --prompt")
    if args.prompt is None and args.max_new_tokens is None:
        raise InputError(
            "how many tokens to make from --inputs is not said", expected="--max-new-tokens N"
        )
    if args.prompt is not None and args.processor is None:
        raise InputError(
            "a prompt becomes inputs through a processor",
            expected="--processor NAME, the folder or name of the model it was exported from",
            hint="or --inputs FILE.safetensors with --max-new-tokens N",
        )
    if args.trace:
        raise InputError("--trace shows outputs of one run", expected="no option that makes tokens")


def _ids(text: str) -> tuple[int, ...]:
    """Parse stop ids for argparse."""
    if text == "none":
        return ()
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids") from error
