"""What `sma inspect` shows of each stage, as text and as data for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sma_compiler.driver import Lowered
from sma_compiler.facts.facts import MaskFacts, Site
from sma_compiler.facts.sizes import Count, SizeExpr
from sma_compiler.ir.nodes import Expr
from sma_compiler.ir.show import show_expr
from sma_compiler.mask.nodes import Gate, Stream, Turn
from sma_compiler.plan.choose import Plans
from sma_compiler.plan.cost import pick, seconds
from sma_compiler.syntax import tree

Data = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Stage:
    """How far the driver must go for a stage, and how what it made is shown."""

    stop_after: str
    text: Callable[[Lowered], str]
    data: Callable[[Lowered], Data]


def tree_data(node: tree.Node) -> dict[str, Any]:
    """A node of the tree with its place and parts."""
    found: dict[str, Any] = {"node": type(node).__name__, "line": node.span.line, "column": node.span.column}
    for field in fields(node):
        if not field.name.endswith("span"):
            found[field.name] = _part_data(getattr(node, field.name))
    return found


def _part_data(value: object) -> object:
    if isinstance(value, tree.Node):
        return tree_data(value)
    return [_part_data(item) for item in value] if isinstance(value, tuple) else value


def tree_text(node: tree.Node, indent: int = 0) -> str:
    """One line a node: its place, class and own values, its parts below it."""
    own = []
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, tuple) and value and isinstance(value[0], tuple):  # pairs of an operator and its operand
            own.append(f"operators={' '.join(pair[0] for pair in value)}")
        elif isinstance(value, str | int | float) and field.name != "doc":
            own.append(f"{field.name}={value!r}")
    place = f"{node.span.line}:{node.span.column}" if node.span.source.text else ""
    line = f"{place:<8}{'  ' * indent}{type(node).__name__} {' '.join(own)}".rstrip()
    return "\n".join([line, *(tree_text(child, indent + 1) for child in tree.children(node))])


def mask_data(site: Site) -> dict[str, Any]:
    """A contraction's mask and what it was taken apart into."""
    found = site.decomposition
    return {
        "contraction": site.name,
        "mask": show_expr(site.node.mask),
        "lo": _shown(found.lo),
        "hi": _shown(found.hi),
        "streams": [_stream_data(stream) for stream in found.streams],
        "near": [{"mask": show_expr(n.mask), "lo": _shown(n.lo), "hi": _shown(n.hi)} for n in found.near],
    }


def _shown(expr: Expr | None) -> str | None:
    return None if expr is None else show_expr(expr)


def _stream_data(stream: Stream) -> dict[str, Any]:
    """The fields of a stream that differ from their defaults, expressions as text."""
    found: dict[str, Any] = {"side": stream.side, "first": stream.first}
    for field in fields(stream):
        value = getattr(stream, field.name)
        if field.name not in found and value not in ((), 0):
            found[field.name] = [_factor(item) for item in value] if isinstance(value, tuple) else value
    return found


def _factor(item: object) -> object:
    match item:
        case Expr():
            return show_expr(item)
        case Gate(log=log, key_closed=first, query_closed=last):
            return f"exp(sum({show_expr(log)}, j {'<=' if first else '<'} t {'<=' if last else '<'} i))"
        case Turn(fn=fn, rate=rate):
            return f"{fn}({show_expr(rate)} * |i - j|)"
    return item


def mask_text(data: Mapping[str, Any]) -> str:
    """The mask of one contraction on a line, its streams and near parts below it."""
    lines = [f"{data['contraction']}: {data['mask']}"]
    lines.append(f"  band: {data['lo'] or '-inf'} <= i - j <= {data['hi'] or 'inf'}")
    for number, stream in enumerate(data["streams"]):
        lines.append(f"  stream {number}: {stream['side']}, |i - j| >= {stream['first']}")
        for name, value in stream.items():
            if name not in ("side", "first"):
                lines.append(f"    {name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    for part in data["near"]:
        lines.append(f"  near, {part['lo'] or '-inf'} <= i - j <= {part['hi'] or 'inf'}: {part['mask']}")
    return "\n".join(lines)


def number(value: Count) -> int | str:
    """A count for programs: an int, or the text of an expression in sizes."""
    return str(value) if isinstance(value, SizeExpr) else value


def facts_data(facts: MaskFacts) -> dict[str, Any]:
    """The facts of one mask with their reasons; counts that depend on sizes as text."""
    found = {field.name: getattr(facts, field.name) for field in fields(facts)}
    return {name: number(value) if isinstance(value, SizeExpr) else value for name, value in found.items()}


def plans_data(plans: Plans) -> dict[str, Any]:
    """The op's legal plans and refusals, then those of each contraction."""
    return {
        "legal": [asdict(legal) for legal in plans.legal],
        "refused": plans.refused,
        "contractions": [
            {"contraction": choice.site.name, "legal": list(choice.legal), "refused": dict(choice.refused)}
            for choice in plans.choices
        ],
    }


def plans_text(plans: Plans) -> str:
    """The legal plans with cost and state, the refused ones with the reason, contraction by contraction."""
    lines = [str(legal) for legal in plans.legal]
    for choice in plans.choices:
        lines.append(f"{choice.site.name}: {', '.join(choice.legal)}")
        lines += [f"  not {name}: {why}" for name, why in choice.refused]
    return "\n".join(lines)


def at_shape(plans: Plans, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each contraction: counts at these sizes (None where a size is missing), the plan that `auto` takes, and
    the seconds that the cost model gives every legal plan of the torch backend on a CPU."""
    found = []
    for choice in plans.choices:
        facts = choice.site.facts
        counts = {name: _at(getattr(facts, name), sizes) for name in ("lower_rank", "upper_rank", "state_size")}
        estimates = {name: seconds(choice, name, sizes) for name in choice.legal}
        found.append({"contraction": choice.site.name, **counts, "auto": pick(choice, sizes), "seconds": estimates})
    return found


def _at(value: Count, sizes: Mapping[str, int]) -> int | None:
    if isinstance(value, int):
        return value
    return value.at(**sizes) if set(value.names) <= sizes.keys() else None


def _plans(lowered: Lowered) -> Plans:
    assert lowered.plans is not None
    return lowered.plans


def _masks(lowered: Lowered) -> list[dict[str, Any]]:
    return [mask_data(choice.site) for choice in _plans(lowered).choices]


STAGES: dict[str, Stage] = {
    "tree": Stage("tree", lambda found: tree_text(found.tree), lambda found: tree_data(found.tree)),
    "mask": Stage("plans", lambda found: "\n".join(map(mask_text, _masks(found))), _masks),
    "facts": Stage(
        "plans",
        lambda found: str(_plans(found).facts),
        lambda found: [facts_data(mask) for mask in _plans(found).facts.masks],
    ),
    "plan": Stage("plans", lambda found: plans_text(_plans(found)), lambda found: plans_data(_plans(found))),
}
"""Every stage that exists, in the order of the pipeline."""

KERNEL_STAGES = ("tile", "triton", "ttir", "ttgir", "llir", "ptx", "sass", "resources")
"""Stages of the Triton backend: kernel IR, the emitted file, and what Triton compiles it to."""
