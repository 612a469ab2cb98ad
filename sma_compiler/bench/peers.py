"""Other implementations, imported where they are measured; each takes a row's arguments by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

Run = Callable[[Mapping[str, Tensor]], Tensor]
MAMBA_CHUNK = 256
"""The chunk of Mamba-2's own models."""


class PeerMissing(Exception):
    """A peer cannot be imported here."""


def _get(module: str, name: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PeerMissing(f"{module.split('.')[0]} cannot be imported: {reason}") from error


def _mamba() -> Run:
    scan = _get("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")

    def run(x: Mapping[str, Tensor]) -> Tensor:
        more = {"D": x["d"], "dt_bias": x["bias"], "dt_softplus": True}
        found: Tensor = scan(x["v"], x["dt"], x["a"], x["k"], x["q"], MAMBA_CHUNK, **more)
        return found

    return run


def _fla(module: str, name: str, **options: object) -> Run:
    attend = _get(f"fla.ops.{module}", name)

    def run(x: Mapping[str, Tensor]) -> Tensor:
        found = attend(x["q"], x["k"], x["v"], **options)
        y: Tensor = found[0] if isinstance(found, tuple) else found
        return y

    return run


def _elu() -> Run:
    attend = _fla("linear_attn", "chunk_linear_attn", normalize=True, scale=1.0)
    return lambda x: attend({"q": F.elu(x["q"]) + 1, "k": F.elu(x["k"]) + 1, "v": x["v"]})


PEERS: dict[str, Callable[[], Run]] = {
    "mamba_ssm": _mamba,
    "fla chunk_retention": lambda: _fla("retention", "chunk_retention"),
    "fla parallel_retention": lambda: _fla("retention", "parallel_retention"),
    "fla chunk_linear_attn": lambda: _fla("linear_attn", "chunk_linear_attn", normalize=False),
    "fla chunk_linear_attn, normalized": lambda: _fla("linear_attn", "chunk_linear_attn", normalize=True, scale=1.0),
    "fla chunk_linear_attn, elu + 1, normalized": _elu,
}
"""How to import each, by the name that rows use. Raises PeerMissing."""


def step_peer() -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """mamba_ssm's decoding step, in place on a state [B, H, V, K]. Raises PeerMissing."""
    update = _get("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")

    def run(x: Mapping[str, Tensor], state: Tensor) -> Tensor:
        batch, heads, value, key = state.shape
        dt, a = (x[name].unsqueeze(-1) for name in ("dt", "a"))
        wide = {"D": x["d"].unsqueeze(-1).expand(heads, value), "dt_bias": x["bias"].unsqueeze(-1).expand(heads, value)}
        a = a.unsqueeze(-1).expand(heads, value, key)
        found: Tensor = update(
            state, x["v"], dt.expand(batch, heads, value), a, x["k"], x["q"], **wide, dt_softplus=True
        )
        return found

    return run
