"""StaticTensor: a tensor whose value is known while a model is captured.

Vision-language models turn geometry (grid sizes, window bounds) into Python ints with ``tolist``,
boolean indexing and ``repeat_interleave``.  Under ``torch.export`` such a tensor has no value and
capture fails.  Geometry is a property of the exported shape, so here it keeps its value: an
operation whose tensor operands are all static runs for real while tracing; one that also reads a
traced tensor sees an ordinary constant, which export lifts.  Sound because nothing that depends
on pixels or token ids is ever static.  Only for ``strict=False``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

FACTORIES = frozenset({torch.arange, torch.linspace, torch.tensor, torch.as_tensor})
"""Constructors folded by ``FoldFactories``; not ``zeros``/``full``/``empty``: these get mutated."""


@contextlib.contextmanager
def _for_real() -> Iterator[None]:
    """Run torch operations eagerly: no tracing mode, no ``__torch_function__``."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _plain(value: Any) -> Any:
    """Return ``value`` with each static tensor replaced by an ordinary one sharing its storage."""
    return pytree.tree_map_only(StaticTensor, lambda t: t.as_subclass(torch.Tensor), value)


def _static(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.as_subclass(StaticTensor), value)


class StaticTensor(torch.Tensor):
    """A compile-time constant; make one with ``StaticTensor.of(tensor)``."""

    @staticmethod
    def of(tensor: torch.Tensor) -> StaticTensor:
        """Return a static copy of ``tensor`` (any shape and dtype)."""
        return tensor.detach().clone().as_subclass(StaticTensor)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = (args, kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor)]
        if all(isinstance(tensor, StaticTensor) for tensor in tensors):
            with _for_real():
                plain_args, plain_kwargs = _plain(call)
                return _static(func(*plain_args, **plain_kwargs))
        with _for_real():  # a clone, so that the constant lifted by export is never aliased
            args, kwargs = pytree.tree_map_only(
                StaticTensor, lambda t: t.as_subclass(torch.Tensor).clone(), call
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class FoldFactories(TorchFunctionMode):
    """While active, ``arange``/``tensor``/``linspace`` of known operands give ``StaticTensor``.

    Window tables are built from ``arange(h * w)``: without this they would be traced and the
    boolean index that drops padding would have an unknown length.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Fold ``func`` if it is a factory all of whose operands are known; else pass it on."""
        call = (args, kwargs or {})
        if func in FACTORIES and not any(map(_is_traced, pytree.tree_leaves(call))):
            with _for_real():
                plain_args, plain_kwargs = _plain(call)
                return _static(func(*plain_args, **plain_kwargs))
        return func(*args, **(kwargs or {}))


def _is_traced(leaf: Any) -> bool:
    if isinstance(leaf, StaticTensor):
        return False
    return isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat)
