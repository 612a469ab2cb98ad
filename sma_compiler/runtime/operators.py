"""Two torch operators for all ops, `sma::forward` and `sma::backward`, known to torch once the package is imported.

A program that was exported holds these operators, so they must be there before it is loaded; what they do is loaded by
their first use, from `opaque`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

LIBRARY = torch.library.Library("sma", "DEF")

_GIVEN = "str op, str how, Tensor[] params, SymInt[] integers, float[] reals, Tensor[] states, Tensor[] packs"
SCHEMAS = {
    "forward": f"({_GIVEN}) -> Tensor[]",
    "backward": f"({_GIVEN}, Tensor dy, Tensor[] saved, Tensor[] dstates, bool[] needs) -> Tensor[]",
}
"""op: which, by its handle. how: the plan and the precision, then `state` and `norm` where these are wanted."""


def _later(name: str) -> Callable[..., object]:
    """A function of `opaque`."""

    def call(*args: object) -> object:
        found: Callable[..., object] = getattr(import_module("sma_compiler.runtime.opaque"), name)
        return found(*args)

    return call


def register() -> None:
    """Tell torch about the operators, once."""
    for name, schema in SCHEMAS.items():
        if hasattr(torch.ops.sma, name):
            continue
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, _later(f"launch_{name}"), key)
        LIBRARY.impl(name, _later(f"differentiate_{name}"), "Autograd", with_keyset=True)
        torch.library.register_fake(f"sma::{name}", _later(f"fake_{name}"), lib=LIBRARY)
        torch.library.register_vmap(f"sma::{name}", _later(f"map_{name}"), lib=LIBRARY)
