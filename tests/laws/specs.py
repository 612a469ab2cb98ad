"""Generated specs: small ops put together from every part of the language, as text.

`Writer` makes one from a source of choices, so that hypothesis can shrink what fails and a loop can draw many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Pick(Protocol):
    """Chooses one of some values."""

    def __call__(self, values: Sequence[T], /) -> T: ...


AXES_OF = {
    "g": "[time, head]",
    "gt": "[time]",
    "gk": "[time, head, key]",
    "gv": "[time, head, value]",
    "gkv": "[time, head, key, value]",
    "a": "[head]",
    "ak": "[head, key]",
    "av": "[head, value]",
    "m": "[head, mode]",
    "w": "[mode]",
    "wh": "[head]",
    "gamma": "[head]",
    "doc": "int[time]",
    "seg": "int[time, head]",
    "on": "bool[time]",
    "c": "[lag]",
    "ch": "[lag, head]",
    "cv": "[lag, head, value]",
    "ck": "[lag, head, key]",
    "lev": "[time, head, level]",
    "n": "int",
    "r": "real",
    "x": "[time, head, value]",
    "y": "[time, head]",
    "z": "[time]",
    "u": "[head]",
    "uk": "[head, key]",
    "beta": "[time, head]",
    "angle": "[time, head, mode]",
    "turns": "[head, mode]",
    "e": "[time, head, key]",
    "h": "[time, key]",
}

BANDS = ("window(3)", "window(n)", "band(1, 4)", "(i - j == 2)", "band(0, n)", "(i - j < 5)", "(i - j >= 2)")
SUPPORTS = (
    "documents(doc)",
    "(doc[i] == doc[j])",
    "on[j]",
    "on[i]",
    "(seg[i] == seg[j])",
    "((i - j) % 3 == 0)",
    "not (i - j == 1)",
    "(i // 4 == j // 4)",
    "(j < 3)",
    "documents(seg)",
    "(j % 2 == 0)",
)
SCALAR = (
    "decay(g)",
    "decay(gt)",
    "decay(-abs(z))",
    "decay(logsigmoid(y))",
    "decay(g * a * a)",
    "retention(gamma)",
    "alibi(a)",
    "causal * exp(sum(g[t], j < t < i))",
    "causal * exp(sum(g[t], j <= t < i))",
    "causal * exp(sum(g[t], j <= t <= i))",
    "decay(g) * decay(gt)",
    "causal * exp(sum(g[t], j < t <= i) - a * (i - j))",
    "strict * decay(g)",
    "(decay(g) + retention(gamma))",
    "(decay(g) @ band(0, 1))",
    "(decay(g) @ band(0, 2))",
    "(decay(g) @ decay(gt))",
    "(band(0, 1) @ decay(g))",
    "(decay(g) * window(6))",
)
SIGNED = (
    "causal * where(i == j, u, exp(sum(g[t], j < t < i)))",
    "causal * cos(wh * (i - j))",
    "causal * sum(exp(-m * m * (i - j)) * cos(w * (i - j)), mode)",
    "causal * (i - j) * exp(-a * a * (i - j))",
    "causal * (i - j + 1)",
    "(decay(g) @ ((y[i] * (i == j)) + (z[i] * (i - j == 1))))",
    "(decay(g) - 0.5 * retention(gamma))",
    "(decay(g) * z[j])",
    "(decay(g) * y[i])",
    "semiseparable(h, gt, h)",
    "(causal - window(2))",
    "causal * sin(wh * (i - j))",
    "(causal * decay(g) * decay(gt) - strict)",
    "levels(lev)",
    "decay(g) * levels(lev)",
    "causal * c[i - j]",
    "toeplitz(ch)",
    "causal * (0.3 + cos(z[i] - z[j]))",
    "where(i - j == 1, z[j], decay(g))",
    "where(i - j < 3, 0, decay(g))",
    "where(on[j], decay(g), 0.5 * causal)",
    "where(on[i], decay(g), retention(gamma))",
    "causal * max(z[i], z[j])",
    "causal * relu(y[i] - z[j])",
    "causal * (a * i + j)",
)
PER_KEY = (
    "decay(gk)",
    "causal * exp(-ak * ak * (i - j))",
    "causal * where(i == j, uk, exp(sum(gk[t], j < t < i)))",
    "ck[i - j] * causal",
    "decay(gk) * decay(g)",
    "(decay(gk) + decay(g))",
    "decay(gk) * window(4)",
)
PER_VALUE = ("decay(gv)", "causal * exp(-av * av * (i - j))", "cv[i - j] * causal", "decay(gv) * decay(g)")
PER_BOTH = ("decay(gkv)", "decay(gk) * decay(gv)")
TWO_SIDED = (
    "full",
    "prefix(n)",
    "transpose(decay(g))",
    "(transpose(decay(g)) + decay(gt))",
    "exp(-a * a * abs(i - j))",
    "(i <= j) * exp(sum(g[t], i <= t < j))",
    "(abs(i - j) <= 2)",
    "(i < j)",
    "(transpose(window(3)) @ decay(g))",
    "(transpose(decay(g)) @ decay(gt))",
    "full * documents(doc)",
    "cos(wh * (i - j))",
    "gamma ** abs(i - j)",
    "(transpose(decay(gt)) * documents(doc) + strict)",
)
STRICT = (
    "strict",
    "strict * decay(g)",
    "strict * decay(gk)",
    "strict * exp(sum(g[t], j < t < i))",
    "strict * exp(sum(gk[t], j < t < i))",
    "strict * documents(doc) * decay(g)",
    "band(1, 3)",
    "strict * window(4) * decay(g)",
    "strict * retention(gamma)",
    "strict * cos(wh * (i - j))",
    "strict * on[j]",
    "strict * (doc[i] == doc[j])",
    "strict * gamma ** (i - j)",
)
QUERIES = ("q", "q", "silu(q)", "l2norm(q)", "rope(q, cumsum(angle))", "e", "q + uk", "shift(q)", "h", "rope(q, angle)")
KEYS = (
    "k",
    "k",
    "l2norm(k)",
    "shift(k)",
    "cumsum(k)",
    "1 - exp(gk)",
    "ck[i - j] @ k",
    "beta * k",
    "h",
    "window(3) @ k",
    "rope(k, cumsum(angle))",
    "k - 0.5 * shift(k)",
    "rmsnorm(k)",
)
VALUES = (
    "v",
    "v",
    "x",
    "beta * v",
    "v + shift(v)",
    "silu(x)",
    "decay(g) @ v",
    "cv[i - j] @ v",
    "y",
    "cumsum(v)",
    "c[i - j] @ (x * v)",
    "on * v",
    "documents(doc) * window(3) @ v",
    "shift(shift(v))",
)
ACTIVATIONS = ("relu", "silu", "sigmoid", "tanh", "exp")
AFTER = (
    "{}",
    "{}",
    "{} + u * v",
    "silu(x) * {}",
    "shift({})",
    "{} + cumsum(x)",
    "rmsnorm({} * k)",
    "decay(g) @ {}",
    "where(on, {}, 0)",
    "{} + (i - j == 3) @ v",
    "tanh({})",
    "{} / (1 + abs(y))",
    "doc * {}",
    "{} - shift({})",
)


@dataclass
class Writer:
    """Writes one spec. causal: whether every position depends on earlier ones alone. names: parameters used so far."""

    pick: Pick
    causal: bool = True
    names: list[str] = field(default_factory=list)

    def factor(self, masks: Sequence[str]) -> str:
        """A mask, perhaps within a band or a support."""
        mask = self.pick(masks)
        extra = self.pick(("", "", "", "band", "support"))
        if extra == "band":
            mask = f"{mask} * {self.pick(BANDS)}"
        if extra == "support":
            mask = f"{mask} * {self._bool(self.pick(SUPPORTS))}"
        return mask

    @staticmethod
    def _bool(support: str) -> str:
        return f"({support})" if support.startswith("not") else support

    def masks(self, *tables: Sequence[str]) -> tuple[str, ...]:
        """The masks to choose from."""
        return sum((tuple(table) for table in tables), () if self.causal else TWO_SIDED)

    def mask(self, *tables: Sequence[str]) -> str:
        """A mask, perhaps a sum of two."""
        masks = self.masks(*tables)
        first = self.factor(masks)
        if self.pick((True, False, False, False)):
            return f"({first}) + ({self.factor(masks)})"
        return first

    def attend(self, values: Sequence[str]) -> str:
        """Queries, keys and values under a mask."""
        kind = self.pick(("plain", "plain", "plain", "channel", "sum", "max1", "softmax", "activation"))
        q, k, v = self.pick(QUERIES), self.pick(KEYS), self.pick(values)
        scale = self.pick(("", "", ", scale=1 / sqrt(key)", ", scale=0.5", ", scale=u"))
        match kind:
            case "plain":
                q, k = self.pick(((q, k), (q, k), (q, "1"), ("1", k), ("1", "1")))
                return f"attend({self.mask(SCALAR, SIGNED)}, {q}, {k}, {v}{scale})"
            case "channel":
                return f"attend({self.mask(PER_KEY, PER_VALUE, PER_BOTH, SCALAR)}, {q}, {k}, {v}{scale})"
            case "sum":
                masks = self.mask(SCALAR, ("decay(gk)", "decay(gv)", "decay(gkv)"))
                return f"attend({masks}, elu({q}) + 1, elu({k}) + 1, {v}, normalize=sum)"
            case "max1":
                masks = self.mask(SCALAR, SIGNED, PER_KEY, PER_VALUE)
                return f"attend({masks}, {q}, {k}, {v}, normalize=max1{scale})"
            case "activation":
                divide = self.pick(("", "", ", normalize=max1"))
                activation = self.pick(ACTIVATIONS)
                return f"attend({self.mask(SCALAR, SIGNED)}, {q}, {k}, {v}, activation={activation}{divide}{scale})"
        masks = (*SCALAR, "decay(gv)") if self.causal else ("full", "prefix(n)", "transpose(decay(g))", *SCALAR)
        mask = self.factor(masks)
        q = self.pick((q, q, "1", "uk"))
        return f"attend({mask}, {q}, {k}, {v}, normalize=softmax{scale})"

    def times(self, values: Sequence[str]) -> str:
        """A mask alone."""
        mask = self.mask(SCALAR, SIGNED, PER_VALUE)
        return f"({mask}) @ ({self.pick(values)})"

    def solve(self, values: Sequence[str]) -> str:
        """The delta rule."""
        b = self.pick(("l2norm(k)", "l2norm(e)", "shift(l2norm(k))", "l2norm(h)"))
        a = self.pick((f"beta * {b}", "0.5 * l2norm(q)", "-0.5 * l2norm(e)", f"beta * {b}"))
        return f"solve({self.pick(STRICT)}, {a}, {b}, {self.pick(values)})"

    def write(self) -> str:
        """The spec."""
        values: Sequence[str] = VALUES
        lines: list[str] = []
        count = self.pick((1, 1, 1, 2, 2, 3))
        for number in range(count):
            form = self.pick((self.attend, self.attend, self.attend, self.times, self.solve))
            lines.append(f"    o{number} = {form(values)}")
            values = (f"o{number}", f"o{number}", f"v + o{number}", f"x * o{number}", *VALUES)
        result = self.pick(AFTER).replace("{}", f"o{count - 1}")
        if count > 1 and self.pick((True, False)):
            result = f"{result} + o0"
        body = "\n".join([*lines, f"    return {result}"])
        return f"op f({', '.join(self.parameters(body))}):\n{body}\n"

    @staticmethod
    def parameters(body: str) -> list[str]:
        """The declarations that a body needs."""
        words = set()
        word = ""
        for letter in body + " ":
            if letter.isalnum() or letter == "_":
                word += letter
            else:
                words.add(word)
                word = ""
        declared = [name for name in ("q", "k", "v") if name in words]
        return declared + [f"{name}: {axes}" for name, axes in AXES_OF.items() if name in words]


@st.composite
def spec_texts(draw: st.DrawFn, causal: bool = True) -> str:
    """Specs, not all of which pass the checker."""
    return Writer(lambda values: draw(st.sampled_from(list(values))), causal).write()
