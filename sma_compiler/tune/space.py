"""What may be measured for a setting: the plans of every backend, and of kernels the configurations worth a try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from itertools import product, zip_longest
from typing import Any

from sma_compiler.emit.source import DEFAULTS, PLANS
from sma_compiler.kernel.choices import FIXED, FORWARD, PAIRS, WALKS, Choices
from sma_compiler.kernel.config import AnyConfig, Config, PairConfig, Recurrence, power_of_two
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.runtime.forecast import (
    Case,
    Forecast,
    auto_pick,
    configured,
    kernel_forecast,
    shapes_of,
    torch_forecast,
)
from sma_compiler.runtime.kernels import class_sizes
from sma_compiler.runtime.records import Pick
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Situation

PAIR_TILES = {
    "forward": ((128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (128, 32, 8, 2), (64, 32, 4, 2)),
    "dq": ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 2), (32, 64, 8, 1), (32, 32, 4, 1)),
    "dkv": ((32, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 2), (32, 64, 8, 2), (64, 32, 8, 1), (32, 32, 4, 1)),
}
"""Rows, columns, warps and stages that quadratic kernels are tried with, the likeliest first."""
SCAN_TILES = {
    "recurrent": ((4, 32, 1, 3, 0), (8, 16, 1, 3, 0), (4, 16, 1, 3, 0), (4, 64, 2, 3, 0), (8, 32, 1, 2, 0)),
    "backward": ((2, 32, 1, 1, 168), (2, 32, 1, 3, 200), (2, 16, 1, 1, 128), (4, 32, 2, 1, 168), (2, 64, 2, 1, 200)),
}
"""Positions, values, warps, stages and registers that scans are tried with."""
HOPELESS = 8.0
"""Times the best prediction: plans beyond it are not measured."""
DOUBT = 0.02
"""Of each number that differs from the defaults."""
PROGRAMS = (0, 132, 264, 528)
"""How many programs a long sequence is cut for; 0: it is not."""
LONG = 32
"""Chunks from which on cutting sequences is worth a try."""


def candidates(at: Situation, limit: int) -> list[Candidate]:
    """At most `limit` candidates, the plan's defaults first: those that the cost model puts first."""
    by_plan = [list(_kernels(at, plan, limit)) for plan in PLANS] if at.target else []
    every = [*_torch(at), *(one for own in by_plan for one in own)]
    best = min((_total(one, at.training) for one in every), default=0.0)
    near = [one for one in every if _total(one, at.training) <= HOPELESS * best]
    first = [one for one in near if not one.choices]
    rest = sorted((one for one in near if one.choices), key=lambda one: _total(one, at.training) * _doubt(one.choices))
    first.sort(key=lambda one: _total(one, at.training))
    picked = {(one.backend, one.pick) for one in (auto_candidate(at, training=own) for own in (False, at.training))}
    usual = [one for one in every if (one.backend, one.pick) in picked]
    return list(dict.fromkeys([*usual, *first, *rest]))[:limit]


def auto_candidate(at: Situation, *, training: bool) -> Candidate:
    """What plan="auto" takes where there is no record: without gradients, or with them."""
    program = at.program
    case = Case(program, class_sizes(at.sizes), at.numbers, at.dtype, at.row, at.target)
    found = auto_pick(case, training=training)
    if found != Pick("torch", "auto"):
        return Candidate(*found)
    chosen = program.choose("auto", at.sizes, at.numbers, at.row)
    for name in (*(plan.name for plan in program.plans.legal), "auto"):
        if program.choose(name, at.sizes, at.numbers, at.row) == chosen:
            return Candidate("torch", name)
    raise AssertionError(chosen)


def signatures(at: Situation, one: Candidate) -> tuple[str, str]:
    """The configurations of a candidate's forward kernels, and of its backward kernels: equal for picks that are the
    same kernels; "" for plans of torch.

    Raises:
        NoTritonKernel: there are none.
    """
    if one.backend == "torch":
        return "", ""
    configs = at.program.kernels.emitted(one.pick, at.sizes, at.dtype, at.target).configs
    parts: tuple[list[str], list[str]] = ([], [])
    for role, config in configs.items():
        usual = {field.name: field.default for field in fields(config)}
        numbers = [f"{name}={int(n)}" for name, n in asdict(config).items() if n != usual[name] and name not in FIXED]
        parts[role.rpartition(".")[2] not in FORWARD].append(f"{role}({' '.join(numbers)})")
    ahead, behind = (" ".join([one.plan, *own]) for own in parts)
    return ahead, behind


def _total(one: Candidate, training: bool) -> float:
    return (one.predicted or 0.0) + ((one.predicted_backward or 0.0) if training else 0.0)


def _torch(at: Situation) -> list[Candidate]:
    """Each plan of the torch backend that differs from the others here, and the mixture that "auto" takes."""
    program = at.program
    seen: dict[tuple[str, ...], Candidate] = {}
    for name in (*(plan.name for plan in program.plans.legal), "auto"):
        chosen = tuple(program.choose(name, at.sizes, at.numbers, at.row).values())
        found = torch_forecast(program, name, at.sizes, at.numbers, at.row)
        seen.setdefault(chosen, _candidate("torch", name, Choices(), found))
    return list(seen.values())


def _candidate(backend: str, plan: str, choices: Choices, found: Forecast) -> Candidate:
    return Candidate(backend, plan, choices, found.forward, found.backward)


def _kernels(at: Situation, plan: str, limit: int) -> Iterator[Candidate]:
    """A plan's file with its defaults, then files with other numbers: the best forward ones beside the best backward
    ones, as the cost model ranks them."""
    program = at.program
    try:
        usual = program.kernels.emitted(plan, at.sizes, at.dtype, at.target)
    except NoTritonKernel:
        return
    shapes = shapes_of(program, at.known, at.dtype)
    times = {Choices(): kernel_forecast(program, plan, at.known, at.dtype, at.row, at.target)}
    yield _candidate("triton", plan, Choices(), times[Choices()])
    sizes = {**DEFAULTS, **at.sizes}
    channels = any(shape.channels for shape in shapes.values())
    for choices in variations(usual.configs, sizes, at.dtype, at.target, channels=channels):
        others = varied(usual.configs, choices)
        if others != usual.configs:
            times[_changed(usual.configs, choices)] = configured(plan, shapes, others, at.row)
    ranked: list[list[Choices]] = []
    for backward in (False, True):
        own = [choices for choices in times if choices and bool(choices.only(backward=True)) == backward]
        own.sort(key=lambda choices: _of(times[choices], backward) * _doubt(choices))
        ranked.append(own[:limit])
    for one, other in zip_longest(*ranked, fillvalue=Choices()):
        both = one | other
        yield _candidate("triton", plan, both, configured(plan, shapes, varied(usual.configs, both), at.row))


def _changed(configs: Mapping[str, AnyConfig], choices: Choices) -> Choices:
    """Those numbers that are others than the defaults."""
    usual: dict[tuple[str, str], set[int]] = {}
    for own in contractions(configs).values():
        for role, config in own.items():
            for field, n in asdict(config).items():
                usual.setdefault((role, field), set()).add(int(n))
    return Choices(tuple(number for number in choices.numbers if usual.get(number[:2]) != {number[2]}))


def contractions(configs: Mapping[str, AnyConfig]) -> dict[str, dict[str, AnyConfig]]:
    """A file's configurations by what the roles of each contraction begin with: choices hold for all of them."""
    found: dict[str, dict[str, AnyConfig]] = {}
    for name, config in configs.items():
        site, dot, role = name.rpartition(".")
        found.setdefault(site + dot, {})[role] = config
    return found


def _doubt(choices: Choices) -> float:
    """What a prediction is multiplied by before it is compared: the defaults are the best that was measured somewhere,
    and nearly all that the model cannot tell apart is slower."""
    return 1.0 + DOUBT * len(choices.numbers)


def _of(found: Forecast, backward: bool) -> float:
    return (found.backward or 0.0) if backward else found.forward


def varied(configs: Mapping[str, AnyConfig], choices: Choices) -> dict[str, AnyConfig]:
    """What a file's configurations become by choices: walks have in common what `backward` says."""
    return {
        name + role: config
        for name, own in contractions(configs).items()
        for role, config in _varied(own, choices).items()
    }


def _varied(configs: Mapping[str, AnyConfig], choices: Choices) -> dict[str, AnyConfig]:
    """The same of one contraction."""
    found: dict[str, AnyConfig] = {}
    shared = ("chunk", "outer", "programs")
    common = {field: n for field, n in choices.data().get("backward", {}).items() if field in shared}
    for role, config in configs.items():
        if isinstance(config, Config):
            given: dict[str, Any] = {}
            if role in (*WALKS, "states", "dstates"):
                usual = configs["backward"]
                given = {field: n for field, n in common.items() if getattr(config, field) == getattr(usual, field)}
            found[role] = choices.apply(role, replace(config, **given))
        elif isinstance(config, PairConfig):
            found[role] = choices.apply(role, config)
        else:
            found[role] = choices.apply(role, config)
    if "back" in found:  # the scan that makes gradients is what `backward` says
        found["back"] = found["backward"]
    return found


def variations(
    configs: Mapping[str, AnyConfig], sizes: Mapping[str, int], dtype: str, target: str, *, channels: bool = False
) -> Iterator[Choices]:
    """Other numbers for the forward kernels, then for the backward kernels of a file with these configurations.

    channels: whether gates differ by channel, whose walks are not cut and have their scores ahead in any case.
    """
    for own in contractions(configs).values():
        yield from _variations(own, sizes, dtype, target, channels=channels)


def _variations(
    configs: Mapping[str, AnyConfig], sizes: Mapping[str, int], dtype: str, target: str, *, channels: bool
) -> Iterator[Choices]:
    """The same of one contraction."""
    if isinstance(configs.get("recurrent"), Config):
        fields = ("chunk", "outer", "warps", "stages", "registers")
        for role, tried in SCAN_TILES.items():
            for tile in tried if role in configs else ():
                yield Choices.of({role: dict(zip(fields, tile, strict=True))})
        return
    if isinstance(configs.get("forward"), PairConfig):
        yield from _pair_variations(configs)
        return
    for role in ("solve", "adjoint"):
        if role in configs:
            for warps, stages in product((4, 8), (1, 2, 3)):
                yield Choices.of({role: {"warps": warps, "stages": stages}})
    narrow = 64 if target == "sm_90" and dtype != "float32" else 16
    for role, axis in (("forward", "value"), ("backward", "key")):
        base = configs.get(role) if configs.keys() & {"forward", "solve"} else None
        if not isinstance(base, Config):
            continue
        wide = max(narrow, power_of_two(sizes[axis]))
        tiles = [base.outer] if channels else [n for n in (16, 32, 64, 128, 256) if narrow <= n <= wide]
        few = sizes["batch"] * sizes["head"] * -(-sizes[axis] // base.outer) < PROGRAMS[2]
        cuts = PROGRAMS if few and sizes["time"] >= LONG * base.chunk and not channels else (base.programs,)
        scores = (False, True) if role == "forward" and not channels else (base.scores,)
        for outer, warps, stages, programs, ahead in product(tiles, (4, 8), (1, 2, 3), cuts, scores):
            chosen = {"outer": outer, "programs": programs}
            if role == "forward":
                chosen |= {"warps": warps, "stages": stages, "scores": int(ahead)}
                yield Choices.of({role: chosen})
            else:
                own = (*WALKS, "states", "dstates")
                walks = {walk: {"warps": warps, "stages": stages} for walk in own if walk in configs}
                yield Choices.of({role: {**chosen, "warps": warps, "stages": stages}, **walks})
    base = configs.get("recurrent")
    if isinstance(base, Recurrence):
        for elements, warps in ((1024, 1), (2048, 2), (4096, 2), (4096, 4)):
            yield Choices.of({"recurrent": {"elements": elements, "warps": warps}})


def _pair_variations(configs: Mapping[str, AnyConfig]) -> Iterator[Choices]:
    """The same of the quadratic plan, whose kernels of gradients are varied together."""

    def numbers(role: str) -> list[dict[str, int]]:
        return [dict(zip(("rows", "columns", "warps", "stages"), tile, strict=True)) for tile in PAIR_TILES[role]]

    for tile in numbers("forward"):
        yield Choices.of({"forward": tile})
    if set(PAIRS) <= configs.keys():
        for together in zip(*map(numbers, PAIRS), strict=True):
            yield Choices.of(dict(zip(PAIRS, together, strict=True)))
