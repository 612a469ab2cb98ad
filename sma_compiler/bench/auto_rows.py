"""The shapes at which plan="auto" is held to what tuning finds: chosen beforehand, over all families of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LETTERS = {"B": "batch", "T": "time", "H": "head", "K": "key", "V": "value", "G": "group", "M": "mode", "L": "level"}
SMALLER = {"batch": (8, 1), "time": (16, 64), "head": (8, 1), "key": (2, 4), "value": (2, 4), "group": (8, 1)}
"""What sizes are divided by on a CPU, and what they stay above."""


@dataclass(frozen=True)
class AutoRow:
    """A library op at a shape. numbers: its integer parameters."""

    op: str
    sizes: Mapping[str, int]
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`mamba2-B8-T4096-H80-K128-V64-G1`."""
        letters = {axis: letter for letter, axis in LETTERS.items()}
        parts = [f"{letters.get(axis, axis)}{n}" for axis, n in {**self.sizes, **self.numbers}.items()]
        return "-".join([self.op, *parts])

    def shape(self, device: str) -> dict[str, int]:
        """Sizes and numbers as `op.tune` takes them; smaller ones on a CPU."""
        if device != "cpu":
            return {**self.sizes, **self.numbers}
        sizes = dict(self.sizes)
        for axis, (times, least) in SMALLER.items():
            if axis in sizes:
                sizes[axis] = max(least, sizes[axis] // times)
        if "group" in sizes and sizes["head"] % sizes["group"]:
            sizes["group"] = 1
        if "mode" in sizes and "key" in sizes:
            sizes["mode"] = min(sizes["mode"], sizes["key"] // 2)
        return {**sizes, **{name: max(1, n // 16) for name, n in self.numbers.items()}}


def _row(text: str) -> AutoRow:
    """From `op B8 T4096 w=1024`."""
    op, *parts = text.split()
    numbers = {name: int(n) for name, _, n in (part.partition("=") for part in parts if "=" in part)}
    sizes = {LETTERS[part[0]]: int(part[1:]) for part in parts if "=" not in part}
    return AutoRow(op, sizes, numbers)


AUTO_ROWS = tuple(
    map(
        _row,
        (
            "mamba2 B8 T4096 H80 K128 V64 G1",
            "mamba2 B4 T8192 H64 K256 V64 G1",
            "mamba2 B1 T131072 H24 K128 V64 G1",
            "mamba2 B2 T2048 H24 K64 V64 G1",
            "mamba2 B16 T512 H24 K64 V64 G1",
            "retention B8 T4096 H16 K128 V128",
            "retention B8 T1024 H16 K128 V128",
            "retention B8 T4096 H8 K256 V512",
            "linear_attention B8 T4096 H16 K128 V128",
            "linear_attention B1 T256 H8 K64 V64",
            "linear_attention_normalized B8 T4096 H16 K128 V128",
            "linear_attention_full B8 T4096 H16 K64 V64",
            "simple_gla B8 T4096 H16 K128 V128",
            "simple_gla B1 T32768 H16 K128 V128",
            "lightning B4 T8192 H16 K128 V128",
            "gla B8 T4096 H4 K256 V512",
            "gla B8 T2048 H16 K64 V64",
            "hgrn2 B8 T2048 H16 K128 V128",
            "rwkv6 B8 T2048 H32 K64 V64",
            "rwkv4 B8 T2048 H2048",
            "mamba1 B8 T2048 H5120 K16",
            "mamba3 B4 T2048 H24 K64 V64 M32",
            "delta_net B8 T2048 H16 K128 V128",
            "gated_delta_net B4 T2048 H16 K128 V128",
            "kda B4 T1024 H16 K128 V128",
            "rwkv7 B4 T1024 H16 K64 V64",
            "attention B4 T8192 H16 K128 V128",
            "attention B8 T1024 H16 K64 V64",
            "attention B2 T4096 H32 K128 V128 G8",
            "alibi B4 T4096 H16 K128 V128",
            "sliding_window B4 T8192 H16 K128 V128 w=1024",
            "document B4 T8192 H16 K128 V128",
            "prefix_lm B4 T4096 H16 K128 V128 n=1024",
            "forgetting B4 T4096 H16 K128 V128",
            "log_linear B4 T2048 H16 K64 V64 L12",
            "hydra B4 T2048 H24 K64 V64",
            "s4d B8 T4096 H768 M32",
            "s4d B8 T512 H768 M32",
            "h3 B4 T1024 H8 K16 V16 M16",
            "hyena B8 T8192 H1 V768",
            "hyena B8 T1024 H1 V768",
        ),
    )
)
