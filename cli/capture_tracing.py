"""What the library does while it is traced, where what it does by default cannot be exported.

Each of these changes how a value is computed, never which value; and the captured program is
compared with the library's own run, where none of them is active.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _WholeBatch(TorchFunctionMode):
    """``list(x)`` of a dim of unknown length is the list of one item: all rows.

    Several models hand their features over as ``list(features)`` [B,N,H], only to concatenate
    them again; a list of unknown length cannot be traced.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass everything on but what ``list`` asks of a tensor whose leading dim is free."""
        listing = func is torch.Tensor.__len__ or (func is torch.Tensor.unbind and args[1:] == (0,))
        if listing and isinstance(args[0].shape[0], torch.SymInt):
            if func is torch.Tensor.unbind:  # what ``Tensor.__iter__`` calls
                return (args[0].flatten(0, 1),)
            raise TypeError("a free size is no length")  # then ``list`` does without
        return func(*args, **(kwargs or {}))


def whole_batch() -> contextlib.AbstractContextManager[Any]:
    """Keep a free batch together where the library makes a list of its items."""
    return _WholeBatch()


@contextlib.contextmanager
def index_masks() -> Iterator[None]:
    """Have attention masks built by broadcasting indices, not by ``vmap``.

    ``vmap`` leaves operators in the graph that ``torch.export.save`` cannot write.  The library
    uses it where a mask is a union or an intersection, in case a caller's function is not made
    of index arithmetic; its own are.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    def without_vmap(make: Callable[..., Any]) -> Callable[..., Any]:
        def mask(*args: Any, **settings: Any) -> Any:
            return make(*args, **{**settings, "use_vmap": False})

        return mask

    plain = {name: MASKS[name] for name in ("sdpa", "eager")}
    try:
        for name, make in plain.items():
            MASKS[name] = without_vmap(make)
        yield
    finally:
        for name in plain:
            MASKS.pop(name)


@contextlib.contextmanager
def unmasked_steps() -> Iterator[None]:
    """Have a single new row read all rows of a cache without a mask, where the mask is causal.

    The library makes that mask, all true, of the first layer's length; layers of other lengths
    could not read by it.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.masking_utils import causal_mask_function

    def unless_all(make: Callable[..., Any]) -> Callable[..., Any]:
        def mask(*, q_length: int, attention_mask: Tensor | None = None, **settings: Any) -> Any:
            causal = settings.get("mask_function", causal_mask_function) is causal_mask_function
            if q_length == 1 and attention_mask is None and causal:
                return None
            return make(q_length=q_length, attention_mask=attention_mask, **settings)

        return mask

    plain = {name: MASKS[name] for name in ("sdpa", "eager")}
    try:
        for name, make in plain.items():
            MASKS[name] = unless_all(make)
        yield
    finally:
        for name, make in plain.items():
            MASKS[name] = make


@contextlib.contextmanager
def dense_injection(model: Any) -> Iterator[None]:
    """Have features injected into later layers added to all rows, zero where no feature belongs.

    The library adds to ``states[mask]``, whose length is unknown while tracing.
    """

    def add(states: Tensor, places: Tensor, features: Tensor) -> Tensor:
        mask = places.to(states.device).unsqueeze(-1)
        return states + torch.zeros_like(states).masked_scatter(mask, features.to(states.dtype))

    found = [part for part in model.modules() if hasattr(part, "_deepstack_process")]
    for part in found:
        part._deepstack_process = add
    try:
        yield
    finally:
        for part in found:
            del part._deepstack_process
