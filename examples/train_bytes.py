"""Trains a byte-level language model whose mixer is a `.sma` spec, on the Python standard library's own sources.

    python examples/train_bytes.py --mixer retention --minutes 5 --out bytes

About a million parameters: an embedding, blocks of [norm, mixer, norm, MLP], a tied head. A bigram model counted on
the same files stands beside it. `--out` gets `loss.png`, `sample.txt` and `result.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import sma_compiler as sma

WIDTH, DEPTH, HEADS = 128, 5, 4
"""Channels, blocks and heads: 1.0 million parameters."""

LENGTH, BATCH = 256, 8
"""Positions of a sequence, sequences of a step."""

TOKEN_SHIFT = sma.compile(Path(__file__).with_name("token_shift.sma"))


def rms_norm(x: Tensor) -> Tensor:
    """Each vector of the last axis divided by its root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


@dataclass(frozen=True)
class Recipe:
    """How a mixer gets the parameters besides q, k and v.

    gates: the shapes of those that are projected from the block's input at every position. weights: the initial values
    of those that are learned. fixed: the rest. finish: what is done to a gate or weight, by name, before the op sees
    it. unit_keys: q and k are scaled to length 1 (by default to root mean square 1).
    """

    gates: dict[str, tuple[int, ...]]
    weights: dict[str, Tensor]
    fixed: dict[str, Tensor | int]
    finish: Callable[[str, Tensor], Tensor] = lambda name, x: x
    unit_keys: bool = False


def log_gate(name: str, x: Tensor) -> Tensor:
    """Log gates near 0: a sixteenth of logsigmoid, so that states last (Yang et al. 2024, GLA)."""
    return F.logsigmoid(x + 2) / 4


def delta_gate(name: str, x: Tensor) -> Tensor:
    """`g` is a log gate, `beta` a step size between 0 and 1."""
    return torch.sigmoid(x) if name == "beta" else log_gate(name, x)


def negative_rate(name: str, x: Tensor) -> Tensor:
    """`a` is learned as the logarithm of a decay rate (Gu and Dao 2023, Mamba)."""
    return -torch.exp(x) if name == "a" else x


def retention_decay() -> Tensor:
    """One decay a head, from fast to slow (Sun et al. 2023)."""
    return 1 - 2.0 ** -torch.linspace(1, 6, HEADS)


PER_HEAD, PER_KEY = (HEADS,), (HEADS, WIDTH // HEADS)
RECIPES: dict[str, Callable[[], Recipe]] = {
    "retention": lambda: Recipe({}, {}, {"gamma": retention_decay()}),
    "simple_gla": lambda: Recipe({"g": PER_HEAD}, {}, {}, log_gate),
    "gla": lambda: Recipe({"g": PER_KEY}, {}, {}, log_gate),
    "mamba2": lambda: Recipe(
        {"dt": PER_HEAD},
        {"a": torch.linspace(-1, 1, HEADS), "bias": torch.full((HEADS,), -2.0), "d": torch.ones(HEADS)},
        {},
        negative_rate,
    ),
    "sliding_window": lambda: Recipe({}, {}, {"w": 64}),
    "alibi": lambda: Recipe({}, {}, {"slope": 2.0 ** -torch.linspace(1, 6, HEADS)}),
    "forgetting": lambda: Recipe({"f": PER_HEAD}, {}, {}, lambda name, x: x + 2),
    "gated_delta_net": lambda: Recipe({"g": PER_HEAD, "beta": PER_HEAD}, {}, {}, delta_gate, unit_keys=True),
}


class Mixer(nn.Module):
    """q, k, v and gates projected from the (shifted) input, the op, a norm per head, and a projection out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.op = sma.library(name)
        self.recipe = RECIPES[name]()
        self.weights = nn.ParameterDict(self.recipe.weights)
        self.sizes = {"q": PER_KEY, "k": PER_KEY, "v": PER_KEY, **self.recipe.gates}
        self.mix = nn.Parameter(torch.full((WIDTH,), 0.5))
        self.project = nn.Linear(WIDTH, sum(math.prod(shape) for shape in self.sizes.values()), bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def arguments(self, x: Tensor) -> dict[str, Tensor | int]:
        """The op's arguments by name. x: [B, T, width], or [B, width] for one position."""
        parts = self.project(x).split([math.prod(shape) for shape in self.sizes.values()], dim=-1)
        found: dict[str, Tensor | int] = {}
        for (name, shape), part in zip(self.sizes.items(), parts, strict=True):
            part = part.unflatten(-1, shape)
            if name in self.recipe.gates:
                part = self.recipe.finish(name, part)
            elif name != "v":
                part = rms_norm(part) if not self.recipe.unit_keys else F.normalize(part, dim=-1)
            found[name] = part
        weights = {name: self.recipe.finish(name, weight) for name, weight in self.weights.items()}
        return {**found, **weights, **self.recipe.fixed}

    def finish(self, y: Tensor) -> Tensor:
        """The op's result [.., H, V] normalised per head and projected to the width."""
        return self.out(rms_norm(y).flatten(-2))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.op(**self.arguments(TOKEN_SHIFT(x, self.mix))))

    def prefill(self, x: Tensor) -> tuple[Tensor, list[sma.State]]:
        """As `forward`, with the states after the last position."""
        shifted, first = TOKEN_SHIFT(x, self.mix, return_state=True)
        y, second = self.op(**self.arguments(shifted), return_state=True)
        return self.finish(y), [first, second]

    def step(self, x: Tensor, states: list[sma.State]) -> tuple[Tensor, list[sma.State]]:
        """One position, x: [B, width]."""
        shifted, first = TOKEN_SHIFT.step(x, self.mix, state=states[0])
        y, second = self.op.step(**self.arguments(shifted), state=states[1])
        return self.finish(y), [first, second]


class Block(nn.Module):
    """Pre-norm mixer and MLP, each added to the stream."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.mixer = Mixer(name)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(rms_norm(x))
        return x + self.mlp(rms_norm(x))

    def prefill(self, x: Tensor) -> tuple[Tensor, list[sma.State]]:
        y, states = self.mixer.prefill(rms_norm(x))
        x = x + y
        return x + self.mlp(rms_norm(x)), states

    def step(self, x: Tensor, states: list[sma.State]) -> tuple[Tensor, list[sma.State]]:
        y, states = self.mixer.step(rms_norm(x), states)
        x = x + y
        return x + self.mlp(rms_norm(x)), states


class ByteModel(nn.Module):
    """Logits [B, T, 256] of the next byte from bytes [B, T]."""

    def __init__(self, mixer: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.7)
        self.blocks = nn.ModuleList(Block(mixer) for _ in range(DEPTH))
        for name, weight in self.named_parameters():
            if name.endswith(("mlp.2.weight", "out.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * DEPTH))

    def head(self, x: Tensor) -> Tensor:
        return F.linear(rms_norm(x), self.embedding.weight) / math.sqrt(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def prefill(self, tokens: Tensor) -> tuple[Tensor, list[list[sma.State]]]:
        """Logits of the byte after the last one, and every block's states."""
        x, states = self.embedding(tokens), []
        for block in self.blocks:
            x, found = block.prefill(x)
            states.append(found)
        return self.head(x[:, -1]), states

    def step(self, token: Tensor, states: list[list[sma.State]]) -> tuple[Tensor, list[list[sma.State]]]:
        """Logits [B, 256] after one more byte [B]."""
        x, later = self.embedding(token), []
        for block, state in zip(self.blocks, states, strict=True):
            x, found = block.step(x, state)
            later.append(found)
        return self.head(x), later


def corpus(seed: int) -> tuple[Tensor, Tensor]:
    """The bytes of the standard library's sources, whole files to training or (one in 20) held out, in seeded order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
    random.Random(seed).shuffle(files)
    cut = max(1, len(files) // 20)
    held, train = (b"\n".join(path.read_bytes() for path in part) for part in (files[:cut], files[cut:]))
    return torch.frombuffer(bytearray(train), dtype=torch.uint8), torch.frombuffer(bytearray(held), dtype=torch.uint8)


def windows(data: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random stretches of LENGTH + 1 bytes, int64 [count, LENGTH + 1]."""
    starts = torch.randint(len(data) - LENGTH, (count, 1), generator=generator)
    return data[starts + torch.arange(LENGTH + 1)].long()


def bigram_bits(train: Tensor, held: Tensor) -> float:
    """Bits a byte of a bigram model counted on `train` (a tenth of a count added to each pair), on windows `held`."""
    pairs = train[:-1].long() * 256 + train[1:].long()
    counts = torch.bincount(pairs, minlength=256 * 256).view(256, 256).double() + 0.1
    logs = (counts / counts.sum(1, keepdim=True)).log2()
    return -logs[held[:, :-1], held[:, 1:]].mean().item()


@torch.no_grad()
def model_bits(model: ByteModel, held: Tensor) -> float:
    """Bits a byte of the model on windows `held`."""
    total = 0.0
    for part in held.split(32):
        logits = model(part[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return total / held[:, 1:].numel() / math.log(2)


@torch.no_grad()
def generate(model: ByteModel, prompt: bytes, count: int, seed: int, temperature: float = 0.6) -> bytes:
    """`prompt` and `count` bytes sampled after it: the prompt in one call, then one `op.step` a byte."""
    generator = torch.Generator().manual_seed(seed)
    logits, states = model.prefill(torch.tensor([list(prompt)]))
    written = bytearray(prompt)
    for _ in range(count):
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        written.append(int(token))
        logits, states = model.step(token, states)
    return bytes(written)


def learning_rate(done: float) -> float:
    """Linear warm-up over the first twentieth of the run, then a cosine down to a twentieth of the peak."""
    warm = min(1.0, done / 0.05)
    return 4e-3 * warm * (0.525 + 0.475 * math.cos(math.pi * done))


def optimizer_of(model: ByteModel) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=4e-3, betas=(0.9, 0.98))


def train(
    model: ByteModel, data: Tensor, minutes: float, steps: int | None, seed: int
) -> Iterator[tuple[float, float]]:
    """Trains in place; yields (part done, bits a byte) after every step, until the minutes or the steps are over."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimizer_of(model)
    start, step, done = time.perf_counter(), 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done)
        batch = windows(data, BATCH, generator)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        done = max((time.perf_counter() - start) / (60 * minutes), step / steps if steps else 0.0)
        yield min(done, 1.0), loss.item() / math.log(2)


def draw_curve(losses: list[float], bigram: float, held_out: float, title: str, path: Path) -> None:
    """The training loss, smoothed over 20 steps, between the bigram's and the final held-out figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    smooth = [sum(losses[max(0, at - 19) : at + 1]) / min(at + 1, 20) for at in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    axes.plot(smooth, color="#35618f", linewidth=1.6, label="training")
    axes.axhline(bigram, color="#c8551b", linewidth=1.2, linestyle="--", label=f"bigram, held out: {bigram:.2f}")
    axes.plot([len(losses) - 1], [held_out], "o", color="#1b2430", label=f"model, held out: {held_out:.2f}")
    axes.set(xlabel="step", ylabel="bits per byte", title=title, ylim=(min(1.5, *smooth), 6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def run(options: argparse.Namespace, console: Console) -> dict[str, float | int | str]:
    """The whole example; returns what `result.json` holds."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    data, held_bytes = corpus(options.seed)
    held = windows(held_bytes, options.windows, torch.Generator().manual_seed(options.seed))
    bigram = bigram_bits(data, held)
    model = ByteModel(options.mixer)
    size = sum(p.numel() for p in model.parameters())
    console.print(f"{options.mixer}: {size:,} parameters, {len(data):,} bytes to train on", soft_wrap=True)
    losses: list[float] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=1.0)
        for done, loss in train(model, data, options.minutes, options.steps, options.seed):
            losses.append(loss)
            recent = sum(losses[-20:]) / len(losses[-20:])
            progress.update(task, completed=done, description=f"step {len(losses)}  {recent:.3f} bits/byte")
    bits = model_bits(model, held)
    sample = generate(model, b"def ", options.sample, options.seed).decode(errors="replace")
    result: dict[str, float | int | str] = {
        "mixer": options.mixer,
        "parameters": size,
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": sum(losses[-20:]) / len(losses[-20:]),
        "held_out_bits_per_byte": bits,
        "bigram_bits_per_byte": bigram,
        "gain": bigram - bits,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "sample.txt").write_text(sample)
    draw_curve(losses, bigram, bits, f"{options.mixer}, {size / 1e6:.1f} M parameters", options.out / "loss.png")
    table = Table("model", "bits a byte, held out")
    table.add_row("bigram", f"{bigram:.3f}")
    table.add_row(options.mixer, f"{bits:.3f}")
    console.print(table)
    console.print(sample, markup=False, highlight=False)
    return result


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixer", choices=sorted(RECIPES), default="retention", help="a spec of sma.library()")
    parser.add_argument("--minutes", type=float, default=5.0, help="time to train for")
    parser.add_argument("--steps", type=int, help="stop after so many steps, if that is sooner")
    parser.add_argument("--out", type=Path, default=Path("train_bytes"), help="folder for the results")
    parser.add_argument("--windows", type=int, default=256, help="held-out sequences for the final figures")
    parser.add_argument("--sample", type=int, default=400, help="bytes to generate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    console = Console()
    run(options, console)
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
