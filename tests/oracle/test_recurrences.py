"""The reference against step-by-step recurrences and plain loops, written from the papers' equations."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu, logsigmoid, softplus

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.source import Source
from sma_compiler.verify.samples import default_sizes, samples

LIBRARY = Path(__file__).parents[2] / "grammar" / "library"
F64 = torch.float64
Arguments = dict[str, Tensor]


def library(name: str) -> Op:
    (op,) = check_file(Source((LIBRARY / f"{name}.sma").read_text(encoding="utf-8"), name))
    return op


def scan(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """S_t = decay_t S_{t-1} + k_t v_t^T, y_t = S_t^T q_t. q, k, decay: [B, T, H, K], v: [B, T, H, V]."""
    state = torch.zeros(*v[:, 0].shape[:2], k.shape[-1], v.shape[-1], dtype=F64)
    rows = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(rows, 1)


def delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """S_t = (I - beta_t k_t k_t^T) decay_t S_{t-1} + beta_t k_t v_t^T, y_t = S_t^T q_t."""
    state = torch.zeros(*v[:, 0].shape[:2], k.shape[-1], v.shape[-1], dtype=F64)
    rows = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state
        read = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - read))[:, :, None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(rows, 1)


def softmax_rows(q: Tensor, k: Tensor, v: Tensor, allowed: Callable[[int, int], bool], bias: Tensor) -> Tensor:
    """Softmax over the allowed columns of q_i k_j / sqrt(K) + bias[b, h, i, j], one row at a time."""
    y = torch.zeros(*q.shape[:3], v.shape[-1], dtype=F64)
    for b, i, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        columns = [j for j in range(k.shape[1]) if allowed(i, j)]
        if columns:
            scores = k[b, columns, h] @ q[b, i, h] / math.sqrt(q.shape[-1]) + bias[b, h, i, columns]
            y[b, i, h] = torch.softmax(scores, 0) @ v[b, columns, h]
    return y


def wide(x: Tensor, like: Tensor) -> Tensor:
    """x [B, T, H] as a decay per key [B, T, H, K]."""
    return x[..., None].expand(like.shape)


def no_bias(q: Tensor) -> Tensor:
    return torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[1], dtype=F64)


def distance(length: int) -> Tensor:
    steps = torch.arange(length, dtype=F64)
    return steps[:, None] - steps[None, :]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax_rows(q, k, v, lambda i, j: j <= i, no_bias(q))


def alibi(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    bias = -slope[None, :, None, None] * distance(q.shape[1])
    return softmax_rows(q, k, v, lambda i, j: j <= i, bias.expand(no_bias(q).shape))


def sliding_window(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    return softmax_rows(q, k, v, lambda i, j: i - w < j <= i, no_bias(q))


def prefix_lm(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    return softmax_rows(q, k, v, lambda i, j: j <= i or j < n, no_bias(q))


def document(q: Tensor, k: Tensor, v: Tensor, doc: Tensor) -> Tensor:
    parts = []
    for b in range(q.shape[0]):
        ends = [t for t in range(1, q.shape[1]) if doc[b, t] != doc[b, t - 1]]
        spans = list(zip([0, *ends], [*ends, q.shape[1]], strict=True))
        runs = [attention(*(x[b : b + 1, start:stop] for x in (q, k, v))) for start, stop in spans]
        parts.append(torch.cat(runs, 1))
    return torch.cat(parts)


def forgetting(q: Tensor, k: Tensor, v: Tensor, f: Tensor) -> Tensor:
    log_gates = logsigmoid(f).movedim(1, -1)  # [B, H, T]
    bias = no_bias(q)
    for i in range(q.shape[1]):
        for j in range(i):
            bias[:, :, i, j] = log_gates[:, :, j + 1 : i + 1].sum(-1)
    return softmax_rows(q, k, v, lambda i, j: j <= i, bias)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scan(q, k, v, torch.ones_like(k)) / math.sqrt(q.shape[-1])


def linear_attention_normalized(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = elu(q) + 1, elu(k) + 1
    total = scan(q, k, torch.ones_like(v[..., :1]), torch.ones_like(k))
    return scan(q, k, v, torch.ones_like(k)) / total


def linear_attention_full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = elu(q) + 1, elu(k) + 1
    state = torch.einsum("bthk,bthv->bhkv", k, v)
    total = torch.einsum("bthk,bhk->bth", q, k.sum(1))
    return torch.einsum("bthk,bhkv->bthv", q, state) / total[..., None]


def retention(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    return scan(q, k, v, gamma[:, None].expand(k.shape)) / math.sqrt(q.shape[-1])


def lightning(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return retention(q, k, v, torch.exp(-s))


def simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return scan(q, k, v, wide(g.exp(), k)) / math.sqrt(q.shape[-1])


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return scan(q, k, v, g.exp()) / math.sqrt(q.shape[-1])


def hgrn2(q: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return scan(q, 1 - g.exp(), v, g.exp())


def mamba2(q: Tensor, k: Tensor, v: Tensor, dt: Tensor, a: Tensor, bias: Tensor, d: Tensor) -> Tensor:
    step = softplus(dt + bias)
    return scan(q, k, step[..., None] * v, wide((step * a).exp(), k)) + d[:, None] * v


def mamba1(q: Tensor, k: Tensor, v: Tensor, dt: Tensor, a: Tensor, d: Tensor) -> Tensor:
    state = torch.zeros(v.shape[0], v.shape[2], q.shape[2], dtype=F64)
    rows = []
    for t in range(v.shape[1]):
        step = dt[:, t, :, None]
        state = (step * a).exp() * state + step * v[:, t, :, None] * k[:, t, None, :]
        rows.append((state * q[:, t, None, :]).sum(-1) + d * v[:, t])
    return torch.stack(rows, 1)


def rwkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    above, below, rows = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        now = (u + k[:, t]).exp()
        rows.append((above + now * v[:, t]) / (below + now))
        above = w.exp() * above + k[:, t].exp() * v[:, t]
        below = w.exp() * below + k[:, t].exp()
    return torch.stack(rows, 1)


def rwkv6(q: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    state, rows = torch.zeros(*v[:, 0].shape[:2], k.shape[-1], v.shape[-1], dtype=F64), []
    for t in range(v.shape[1]):
        new = k[:, t, :, :, None] * v[:, t, :, None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state + u[:, :, None] * new))
        state = w[:, t, :, :, None].exp() * state + new
    return torch.stack(rows, 1)


def rwkv7(q: Tensor, k: Tensor, v: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """S_t = (diag(exp w_t) + b_t a_t^T) S_{t-1} + k_t v_t^T."""
    state, rows = torch.zeros(*v[:, 0].shape[:2], k.shape[-1], v.shape[-1], dtype=F64), []
    for t in range(v.shape[1]):
        read = torch.einsum("bhk,bhkv->bhv", a[:, t], state)
        state = w[:, t, :, :, None].exp() * state + b[:, t, :, :, None] * read[:, :, None, :]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(rows, 1)


def delta_net(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    return delta(q, k, v, torch.ones_like(k), beta) / math.sqrt(q.shape[-1])


def gated_delta_net(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return delta(q, k, v, wide(g.exp(), k), beta) / math.sqrt(q.shape[-1])


def kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return delta(q, k, v, g.exp(), beta) / math.sqrt(q.shape[-1])


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """x [B, H, K] with its pairs (2n, 2n + 1) multiplied by e^{i angle_n} as complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    modes = angle.shape[-1]
    pairs = torch.cat((pairs[..., :modes] * torch.polar(torch.ones_like(angle), angle), pairs[..., modes:]), -1)
    return torch.view_as_real(pairs).flatten(-2)


def mamba3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adt: Tensor,
    dt: Tensor,
    trap: Tensor,
    qb: Tensor,
    kb: Tensor,
    angle: Tensor,
    d: Tensor,
) -> Tensor:
    """h_t = e^{adt_t} h_{t-1} + (1 - m_t) dt_t e^{adt_t} x_{t-1} + m_t dt_t x_t with x_t = k_t v_t^T turned."""
    state, rows = torch.zeros(*v[:, 0].shape[:2], k.shape[-1], v.shape[-1], dtype=F64), []
    before, turn = torch.zeros_like(state), torch.zeros_like(angle[:, 0])
    m = torch.sigmoid(trap)
    for t in range(v.shape[1]):
        turn = turn + angle[:, t] * dt[:, t, :, None]
        now = turned(k[:, t] + kb, turn)[..., None] * v[:, t, :, None, :]
        alpha = adt[:, t].exp()
        weight, earlier = m[:, t] * dt[:, t], (1 - m[:, t]) * dt[:, t] * alpha
        state = alpha[..., None, None] * state + earlier[..., None, None] * before + weight[..., None, None] * now
        before = now
        rows.append(torch.einsum("bhk,bhkv->bhv", turned(q[:, t] + qb, turn), state))
    return torch.stack(rows, 1) + d[:, None] * v


def hydra(
    q: Tensor, k: Tensor, v: Tensor, dt: Tensor, q2: Tensor, k2: Tensor, dt2: Tensor, a: Tensor, d: Tensor
) -> Tensor:
    """A scan delayed by one step, the same on the reversed sequence, and a diagonal."""
    forward = scan(q, k, dt[..., None] * v, wide((dt * a).exp(), k))
    q2, k2, dt2, back = (x.flip(1) for x in (q2, k2, dt2, v))
    # the gate of the reversed scan at a step is that of the step itself: the path from j down to i has i, not j
    backward = scan(q2, k2, dt2[..., None] * back, wide((dt2 * a).exp(), k2)).flip(1)
    nothing = torch.zeros_like(v[:, :1])
    return torch.cat((nothing, forward[:, :-1]), 1) + torch.cat((backward[:, 1:], nothing), 1) + d[..., None] * v


def s4d(v: Tensor, a: Tensor, w: Tensor, cr: Tensor, ci: Tensor, d: Tensor) -> Tensor:
    """x_t = e^{-a + iw} x_{t-1} + v_t, y_t = 2 Re(c x_t) + d v_t, in complex numbers."""
    rate, c = torch.complex(-a, w).exp(), torch.complex(cr, ci)
    state, rows = torch.zeros(v.shape[0], *a.shape, dtype=torch.complex128), []
    for t in range(v.shape[1]):
        state = rate * state + v[:, t, :, None]
        rows.append(2 * (c * state).sum(-1).real + d * v[:, t])
    return torch.stack(rows, 1)


def h3(q: Tensor, k: Tensor, v: Tensor, s: Tensor, c: Tensor, a: Tensor, w: Tensor) -> Tensor:
    past = torch.zeros_like(k)
    for i in range(k.shape[1]):
        for lag in range(min(i + 1, s.shape[0])):
            past[:, i] += s[lag] * k[:, i - lag]
    y = torch.zeros_like(v)
    for i in range(v.shape[1]):
        for j in range(i + 1):
            taps = (c * (-a * (i - j)).exp() * (w * (i - j)).cos()).sum(-1)  # [H]
            y[:, i] += (taps * (q[:, i] * past[:, j]).sum(-1))[..., None] * v[:, j]
    return y


def hyena(v: Tensor, x0: Tensor, x1: Tensor, c: Tensor, b: Tensor) -> Tensor:
    u = x1 * v
    y = b * u
    for i in range(v.shape[1]):
        for lag in range(min(i + 1, c.shape[0])):
            y[:, i] += c[lag] * u[:, i - lag]
    return x0 * y


def log_linear(q: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """Level l of row i holds the l-th block of the partition of [0, i) into the powers of two of i, plus i itself."""
    y = torch.zeros_like(v)
    for i in range(v.shape[1]):
        blocks, stop = [(0, i, i + 1)], i
        for bit in range(i.bit_length()):
            if i >> bit & 1:
                blocks.append((bit + 1, stop - (1 << bit), stop))
                stop -= 1 << bit
        assert stop == 0
        for level, first, last in blocks:
            for j in range(first, last):
                decay = g[:, j + 1 : i + 1].sum(1).exp()
                score = (q[:, i] * k[:, j]).sum(-1) / math.sqrt(q.shape[-1])
                y[:, i] += (w[:, i, :, level] * decay * score)[..., None] * v[:, j]
    return y


RECURRENCES: tuple[Callable[..., Tensor], ...] = (
    attention, alibi, sliding_window, document, prefix_lm, forgetting, linear_attention, linear_attention_normalized,
    linear_attention_full, retention, lightning, simple_gla, gla, hgrn2, mamba2, mamba1, rwkv4, rwkv6, mamba3, hydra,
    s4d, h3, hyena, log_linear, delta_net, gated_delta_net, kda, rwkv7,
)  # fmt: skip


def test_every_library_spec_has_a_recurrence() -> None:
    assert {one.__name__ for one in RECURRENCES} == {path.stem for path in LIBRARY.glob("*.sma")}


@pytest.mark.parametrize("recurrence", RECURRENCES, ids=lambda one: one.__name__)
def test_reference_is_the_recurrence(recurrence: Callable[..., Tensor]) -> None:
    op = library(recurrence.__name__)
    sizes = default_sizes(op, batch=2, time=13, head=2, key=6, value=3, lag=5, mode=2)
    arguments = samples(op, sizes, F64, seed=1)
    expected = recurrence(*arguments.values())
    torch.testing.assert_close(evaluate(op, arguments), expected, rtol=1e-12, atol=1e-12)
