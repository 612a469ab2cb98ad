"""Random masks and ops as text, for property tests."""

from __future__ import annotations

import re

from hypothesis import strategies as st

PARAMETERS = {
    "q": "q",
    "k": "k",
    "v": "v",
    "w": "w: int",
    "s": "s: [head]",
    "g": "g: [time, head]",
    "h": "h: [time]",
    "r": "r: [time, head, key]",
    "doc": "doc: int[time]",
    "on": "on: bool[time]",
    "c": "c: [lag, head]",
    "w3": "w3: [time, level]",
    "a": "a: [key]",
    "b": "b: [time, key]",
    "turn": "turn: [time, head, mode]",
}
SIZES = {"batch": 2, "time": 7, "head": 2, "key": 3, "value": 2, "mode": 1, "lag": 4, "level": 3}

BOOLEANS = st.sampled_from(
    ["causal", "strict", "full", "window(w)", "band(-2, 1)", "prefix(w)", "i == j", "doc[i] == doc[j]", "on[i]",
     "on[j]", "documents(doc)", "(i - j) % 2 == 0", "i // 2 == j // 2", "not causal", "i <= j"]
)  # fmt: skip
NUMBERS = st.sampled_from(
    ["exp(-s * abs(i - j))", "exp(sum(g[t], j < t <= i))", "exp(sum(h[t], i <= t < j))", "sum(g[t], j <= t <= i)",
     "g[i]", "h[j]", "c[i - j]", "(i - j)", "cos(s * (i - j))", "s", "2", "exp(g)[j]", "levels(w3)", "decay(r)",
     "0.5 ** abs(i - j)", "sum(h[t] * g[t], j < t < i)", "(j + 1)", "sum(a * b[i], key)", "decay(g)", "decay(h)"]
)  # fmt: skip
LEAVES = st.one_of(BOOLEANS.map(lambda mask: f"({mask})"), NUMBERS)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, st.sampled_from(["*", "*", "*", "+", "-", "@"]), inner)
    return st.one_of(
        pairs.map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"),
        inner.map(lambda mask: f"(causal * {mask})"),
        inner.map(lambda mask: f"transpose({mask})"),
        inner.map(lambda mask: f"(-{mask})"),
        st.tuples(BOOLEANS, inner, inner).map(lambda parts: f"where({parts[0]}, {parts[1]}, {parts[2]})"),
    )


MASKS = st.recursive(LEAVES, _grown, max_leaves=6)
SMALL_MASKS = st.recursive(LEAVES, _grown, max_leaves=3)


def spec_of(result: str) -> str:
    """An op that returns an expression of some of `PARAMETERS`."""
    words = set(re.findall(r"\w+", result))
    declared = ", ".join(text for name, text in PARAMETERS.items() if name in words)
    return f"op f({declared}):\n    return {result}\n"
