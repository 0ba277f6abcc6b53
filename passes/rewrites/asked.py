"""Asked: rewrites of attention as a person writes them: ``var{p=0.6 site=decoder:2}``."""

from __future__ import annotations

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Attending
from tokopt.passes.option import read_settings
from tokopt.passes.rewrites.registry import find_rewrite
from tokopt.passes.rewrites.reuse import Reuse
from tokopt.passes.rewrites.rewrite import Rewrite
from tokopt.passes.syntax import Call, read_calls

SITE = "site"
"""The option that names the first layer; without it the published one, scaled to the depth."""
LAYERS = 32
"""The depth of the decoders that layers were published for."""


def asked_attention(facts: Facts, text: str) -> tuple[Attending, ...]:
    """Return a plan's entries, one for each rewrite of ``text`` (commas between them).

    Raises ``InputError`` for names and options that are not known, ``UnsupportedError`` where the
    model has no such stack and no site is named.
    """
    calls = read_calls(text)
    if not calls:
        raise InputError("no rewrite of attention is named", expected="a name: var{p=0.6}")
    return tuple(_attending(facts, call) for call in calls)


def _attending(facts: Facts, call: Call) -> Attending:
    rewrite = find_rewrite(call.name)
    options = read_settings(call)
    site = options.pop(SITE, None)
    rewrite.settings(options)
    place = published_site(facts, rewrite) if site is None else str(site)
    return Attending(place, call.name, options)


def published_site(facts: Facts, rewrite: Rewrite | Reuse) -> str:
    """Return the site at which a rewrite begins: layer k of 32 is round(k L / 32), at least 1.

    One that reuses rows begins at the first layer of the tower.
    """
    stack = facts.consumer
    if isinstance(rewrite, Reuse):
        return f"{_tower(facts).role}:{rewrite.first}"
    if stack.role.rstrip("0123456789") not in rewrite.roles:
        raise UnsupportedError(
            f"{rewrite.name} rewrites the attention of a decoder, and this model has none",
            expected=" or ".join(sorted(rewrite.roles)),
        )
    layers = len(stack.stack.layers)
    depth = min(layers - 1, max(1, round(rewrite.first * layers / LAYERS)))
    return f"{stack.role}:{depth}"


def _tower(facts: Facts) -> TokenStack:
    """Return the tower that feeds the consumer, or is it; ``UnsupportedError`` without one."""
    fed = facts.feeder(facts.consumer)
    if fed is not None and fed[0].role.startswith("vision"):
        return fed[0]
    found = next((stack for stack in facts.stacks if stack.role.startswith("vision")), None)
    if found is None:
        raise UnsupportedError(
            "the model has no tower whose rows could be reused", expected="a stack of visual tokens"
        )
    return found
