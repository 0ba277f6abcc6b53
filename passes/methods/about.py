"""About: what a method needs and where it works, in words.

The words are made of the method's own declarations (``needs``, ``roles``, ``schedule``), so they
say what the compiler goes by.
"""

from __future__ import annotations

from tokopt.passes.methods.method import Method, Setting
from tokopt.passes.rewrites.reuse import Reuse
from tokopt.passes.rewrites.rewrite import Rewrite

NEEDS = {
    "layers": "attention",
    "text": "text rows",
    "entry": "the rows at the decoder's entry",
    "places": "the grid of patches",
    "tower": "the tower's attention",
    "blocks": "what blocks add to the stream",
    "picked": "rows read by number",
}
"""What ``Method.needs`` may name; ``relay`` is another row in a tower than in a decoder."""
RELAYS = {"vision": "the class token", "decoder": "the last prompt row"}
LAYERS, COUNT, KEEP = 32, 576, 64


def needs_in_words(method: Method | Rewrite | Reuse) -> tuple[str, ...]:
    """Return what must be there for a method to be placed, beside the visual rows."""
    relays = [RELAYS[role] for role in sorted(method.roles) if role in RELAYS]
    words = [NEEDS[need] for need in NEEDS if need in method.needs]
    names = getattr(method, "state", {})
    stateful = isinstance(method, Reuse) or names
    said = ["which rows are wanted, where its caller says it"] if "wanted" in names else []
    kept = said or (["what it kept of earlier calls"] if stateful else [])
    kept += ["an order from calibration inputs"] if getattr(method, "ordered", False) else []
    return (*words, *(relays if "relay" in method.needs else ()), *kept)


def scope(method: Method) -> tuple[str, ...]:
    """Return where a method's published stages lie: ``vision``, ``merge boundary``, ``LLM``.

    The merge boundary is where the projector's rows enter the decoder; ``resampler``: one of these.
    """
    found: set[str] = set()
    for role in method.roles:
        consumer = role != "vision"
        setting = Setting(role, LAYERS, COUNT, KEEP, consumer=consumer, entropies=(0.5,) * LAYERS)
        for stage in method.schedule(setting):
            inside = {"vision": "vision", "decoder": "LLM" if stage.depth else "merge boundary"}
            inside["text"] = "text encoder"
            found.add(inside.get(role, role))
    order = ("vision", "resampler", "merge boundary", "LLM", "text encoder")
    return tuple(place for place in order if place in found)
