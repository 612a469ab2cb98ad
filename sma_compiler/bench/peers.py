"""Other implementations, imported where they are measured; each takes a row's arguments by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import functional as F

Arguments = Mapping[str, Any]
"""By name: tensors, the width of a window, and what a peer derives from them before it is timed."""
T = TypeVar("T")
Mod = Callable[..., Tensor]
"""A mask or a score as FlexAttention takes it, of batch, head, row and column."""


def _as_it_is(x: T) -> T:
    return x


@dataclass(frozen=True)
class Peer:
    """run: its result, of its own arguments. given: these, from a row's. taken: its result as the row's.

    Both are differentiable, and are not timed: tensors in the layout that it likes best, the blocks of a mask.
    """

    run: Callable[[Arguments], Tensor]
    given: Callable[[Arguments], Arguments] = _as_it_is
    taken: Callable[[Tensor], Tensor] = _as_it_is


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


def _mamba() -> Peer:
    scan = _get("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")

    def run(x: Arguments) -> Tensor:
        more = {"D": x["d"], "dt_bias": x["bias"], "dt_softplus": True}
        found: Tensor = scan(x["v"], x["dt"], x["a"], x["k"], x["q"], MAMBA_CHUNK, **more)
        return found

    return Peer(run)


def _selective_scan() -> Peer:
    """Mamba-1, channels before positions, [B, D, T] and [B, N, T], all four in the dtype of v."""
    scan = _get("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    _get("selective_scan_cuda", "fwd")

    def run(x: Arguments) -> Tensor:
        found: Tensor = scan(x["v"], x["dt"], x["a"], x["k"], x["q"], x["d"])
        return found

    def given(x: Arguments) -> Arguments:
        return _turned(("q", "k", "v", "dt"), {**x, "dt": x["dt"].to(x["v"].dtype)})

    return Peer(run, given, lambda y: y.transpose(1, 2))


def _turned(names: tuple[str, ...], x: Arguments) -> Arguments:
    """The arguments, axes 1 and 2 of some exchanged in memory."""
    return {**x, **{name: x[name].transpose(1, 2).contiguous() for name in names}}


def _fla(module: str, name: str, gates: tuple[str, ...] = (), **options: object) -> Peer:
    """gates: the arguments after q, k and v."""
    attend = _get(f"fla.ops.{module}", name)

    def run(x: Arguments) -> Tensor:
        found = attend(*(x[name] for name in ("q", "k", "v", *gates)), **options)
        y: Tensor = found[0] if isinstance(found, tuple) else found
        return y

    return Peer(run)


def _gated(module: str, name: str, gates: tuple[str, ...]) -> Peer:
    """A function of FLA whose gradients it refuses on Hopper under Triton 3.4 to 3.7.0, where tiles of 64 channels of
    keys are wrong: those of 128, which are right (compared with fp64), are let through."""
    attend = _fla(module, name, gates)
    common = vars(importlib.import_module("fla.ops.common.chunk_o"))
    refused = common["IS_NVIDIA_HOPPER"]

    def run(x: Arguments) -> Tensor:
        common["IS_NVIDIA_HOPPER"] = refused and x["k"].shape[-1] != 128
        return attend.run(x)

    return Peer(run)


def _elu() -> Peer:
    attend = _fla("linear_attn", "chunk_linear_attn", normalize=True, scale=1.0).run
    return Peer(lambda x: attend({"q": F.elu(x["q"]) + 1, "k": F.elu(x["k"]) + 1, "v": x["v"]}))


def _hgrn2() -> Peer:
    """Gated linear attention whose keys are what the gates leave."""
    attend = _fla("gla", "chunk_gla", ("g",), scale=1.0).run
    return Peer(lambda x: attend({**x, "k": (1 - x["g"].exp()).to(x["q"].dtype)}))


def _rwkv7() -> Peer:
    attend = _get("fla.ops.rwkv7", "chunk_rwkv7")

    def run(x: Arguments) -> Tensor:
        y: Tensor = attend(x["q"], x["w"], x["k"], x["v"], x["a"], x["b"])[0]
        return y

    return Peer(run)


def _forgetting() -> Peer:
    attend = _fla("forgetting_attn", "parallel_forgetting_attn", ("f",)).run
    return Peer(lambda x: attend({**x, "f": F.logsigmoid(x["f"])}))


def _causal(_: Arguments) -> Mod:
    return lambda _b, _h, i, j: i >= j


def _window(x: Arguments) -> Mod:
    width = x["w"]
    return lambda _b, _h, i, j: (i >= j) & (i - j < width)


def _prefix(x: Arguments) -> Mod:
    seen = x["n"]
    return lambda _b, _h, i, j: (i >= j) | (j < seen)


def _documents(x: Arguments) -> Mod:
    doc = x["doc"]
    return lambda b, _h, i, j: (i >= j) & (doc[b, i] == doc[b, j])


def _alibi(x: Arguments) -> Mod:
    slope = x["slope"]
    return lambda score, _b, h, i, j: score - slope[h] * (i - j)


def _flex(mask: Callable[[Arguments], Mod], score: Callable[[Arguments], Mod] | None = None) -> Peer:
    """FlexAttention, compiled for each shape, heads before positions; the blocks of its mask are made beforehand."""
    blocks = _get("torch.nn.attention.flex_attention", "create_block_mask")
    _get("torch._dynamo", "reset")()  # it gives up after eight forms of one function
    attend = _get("torch", "compile")(_get("torch.nn.attention.flex_attention", "flex_attention"), dynamic=False)

    def given(x: Arguments) -> Arguments:
        turned = _turned(("q", "k", "v"), x)
        batch, _, time, _ = turned["q"].shape
        rows = batch if "doc" in x else None
        made = blocks(mask(x), rows, None, time, time, device=turned["q"].device)
        return {**turned, "blocks": made, "score": score(x) if score else None}

    def run(x: Arguments) -> Tensor:
        shared = x["q"].shape[1] != x["k"].shape[1]
        options = {"score_mod": x["score"], "block_mask": x["blocks"], "enable_gqa": shared}
        found: Tensor = attend(x["q"], x["k"], x["v"], **options)
        return found

    return Peer(run, given, lambda y: y.transpose(1, 2))


def _cudnn() -> Peer:
    """torch's attention by cuDNN, heads before positions."""
    only = _get("torch.nn.attention", "sdpa_kernel")
    backend = _get("torch.nn.attention", "SDPBackend")

    def run(x: Arguments) -> Tensor:
        with only(vars(backend)["CUDNN_ATTENTION"]):
            return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True)

    return Peer(run, partial(_turned, ("q", "k", "v")), lambda y: y.transpose(1, 2))


PEERS: dict[str, Callable[[], Peer]] = {
    "mamba_ssm": _mamba,
    "mamba_ssm selective_scan": _selective_scan,
    "fla chunk_retention": lambda: _fla("retention", "chunk_retention"),
    "fla parallel_retention": lambda: _fla("retention", "parallel_retention"),
    "fla chunk_linear_attn": lambda: _fla("linear_attn", "chunk_linear_attn", normalize=False),
    "fla chunk_linear_attn, normalized": lambda: _fla("linear_attn", "chunk_linear_attn", normalize=True, scale=1.0),
    "fla chunk_linear_attn, elu + 1, normalized": _elu,
    "fla chunk_simple_gla": lambda: _gated("simple_gla", "chunk_simple_gla", ("g",)),
    "fla fused_chunk_simple_gla": lambda: _fla("simple_gla", "fused_chunk_simple_gla", ("g",)),
    "fla chunk_lightning_attn": lambda: _fla("lightning_attn", "chunk_lightning_attn", layer_idx=0, num_layers=12),
    "fla chunk_gla": lambda: _fla("gla", "chunk_gla", ("g",)),
    "fla chunk_gla, hgrn2": _hgrn2,
    "fla chunk_rwkv6": lambda: _fla("rwkv6", "chunk_rwkv6", ("w", "u"), scale=1.0),
    "fla chunk_rwkv7": _rwkv7,
    "fla chunk_delta_rule": lambda: _fla("delta_rule", "chunk_delta_rule", ("beta",)),
    "fla chunk_gated_delta_rule": lambda: _gated("gated_delta_rule", "chunk_gated_delta_rule", ("g", "beta")),
    "fla chunk_kda": lambda: _fla("kda", "chunk_kda", ("g", "beta")),
    "fla parallel_forgetting_attn": _forgetting,
    "flex, causal": lambda: _flex(_causal),
    "flex, window": lambda: _flex(_window),
    "flex, documents": lambda: _flex(_documents),
    "flex, alibi": lambda: _flex(_causal, _alibi),
    "flex, prefix": lambda: _flex(_prefix),
    "cudnn, causal": _cudnn,
}
"""How to import each, by the name that rows use. Raises PeerMissing."""
