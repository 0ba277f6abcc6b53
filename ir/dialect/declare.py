"""Declare a dialect operator once: schema, fake kernel, semantics and docs from one function."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

NAMESPACE = "tokopt"


@dataclass(frozen=True)
class Op:
    """One operator.  ``reference`` is its meaning in aten; ``samples`` are calls for law tests."""

    name: str
    reference: Callable[..., torch.Tensor]
    overload: Any
    samples: Callable[[], list[tuple[Any, ...]]]

    @property
    def doc(self) -> str:
        """The operator's documentation."""
        return self.reference.__doc__ or ""


OPS: dict[str, Op] = {}


def op(
    samples: Callable[[], list[tuple[Any, ...]]],
) -> Callable[[Callable[..., torch.Tensor]], Op]:
    """Register a function as ``tokopt::<its name>``.

    The schema comes from the annotations; the body is the eager kernel and, on fake tensors, the
    shape function: ``torch._check`` in it holds in both.
    """

    def register(function: Callable[..., torch.Tensor]) -> Op:
        name = function.__name__
        if name in OPS:
            raise ValueError(f"two dialect operators named {name}")
        kernel = torch.library.custom_op(f"{NAMESPACE}::{name}", mutates_args=())(function)
        kernel.register_fake(function)
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        OPS[name] = Op(name, function, overload, samples)
        return OPS[name]

    return register


def is_dialect(node: fx.Node) -> bool:
    """Return whether a node calls a dialect operator."""
    return getattr(node.target, "namespace", None) == NAMESPACE


def load_dialect() -> dict[str, Op]:
    """Import every operator file of this package."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"tokopt.ir.dialect.{module.name}")
    return OPS
