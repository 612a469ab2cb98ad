"""Every mistake in a call is refused before any work, by a class of its own that names the tensor and its line."""

from __future__ import annotations

import pickle

import pytest
import torch

from sma_compiler import call_errors as errors
from sma_compiler.call_errors import CallError
from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.ir.roles import roles
from sma_compiler.runtime import args
from sma_compiler.runtime.args import bind, check_pack, check_turns, check_values
from sma_compiler.source import Source

TEXT = """\
op mixed(
    q, k, v,
    g: [time, head],
    doc: int[time],
    on: bool[time],
    w: int,
    s: real):
    L = decay(g) * window(w) * (doc[i] == doc[j]) * on[j]
    return s * attend(L, q, k, v)
"""

Arguments = dict[str, object]


def op_of(text: str) -> Op:
    (op,) = check_file(Source(text, "spec.sma"))
    return op


MIXED = op_of(TEXT)


def good() -> Arguments:
    """B 2, T 5, H 4, K 3, V 6; one group of keys and values serves two heads."""
    return {
        "q": torch.randn(2, 5, 4, 3),
        "k": torch.randn(2, 5, 2, 3),
        "v": torch.randn(2, 5, 2, 6),
        "g": -torch.rand(1, 5, 4),
        "doc": torch.zeros(2, 5, dtype=torch.int32),
        "on": torch.ones(2, 5, dtype=torch.bool),
        "w": 3,
        "s": 2,
    }


def test_binds_in_the_order_of_the_spec() -> None:
    given = good()
    positional = [given.pop(name) for name in ("q", "k", "v")]
    bound = bind(MIXED, positional, given)
    assert bound.tensors["v"] is positional[2]
    assert bound.sizes == {"batch": 2, "time": 5, "head": 4, "key": 3, "value": 6}
    assert bound.numbers == {"w": 3, "s": 2.0}
    assert isinstance(bound.numbers["s"], float)
    assert bound.tensors["doc"].dtype == torch.int64
    assert bound.compute == torch.float32


def test_a_step_lacks_time() -> None:
    given = good()
    step = {name: x[:, 0] if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    bound = bind(MIXED, (), step, step=True)
    assert bound.sizes == {"batch": 2, "time": 1, "head": 4, "key": 3, "value": 6}
    with pytest.raises(errors.WrongDimensions, match=r"'q' must have 3 dimensions \[batch, head, key\], but has 4"):
        bind(MIXED, (), given, step=True)


WRONG: dict[str, tuple[Arguments, type[CallError], str]] = {
    "missing": ({"g": None}, errors.MissingArgument, r"'g' is missing: pass a tensor \[batch, time, head\]"),
    "missing number": ({"w": None}, errors.MissingArgument, r"'w' is missing: pass a number"),
    "unknown": ({"dock": torch.ones(2)}, errors.UnknownArgument, r"no parameter 'dock'; did you mean 'doc'\?"),
    "list": ({"q": [1.0]}, errors.NotATensor, r"'q' must be a torch.Tensor \[batch, time, head, key\], not list"),
    "none": ({"q": "None"}, errors.NotATensor, r"not str"),
    "dims": (
        {"k": torch.ones(2, 5, 3)},
        errors.WrongDimensions,
        r"4 dimensions \[batch, time, head, key\].*\[2, 5, 3\]",
    ),
    "int query": (
        {"q": torch.ones(2, 5, 4, 3, dtype=torch.int64)},
        errors.WrongElements,
        r"'q' must be bfloat16.*int64",
    ),
    "complex": ({"v": torch.ones(2, 5, 2, 6, dtype=torch.cfloat)}, errors.WrongElements, r"complex64"),
    "float ids": ({"doc": torch.zeros(2, 5)}, errors.WrongElements, r"'doc' must be integers"),
    "int mask": ({"on": torch.ones(2, 5, dtype=torch.int64)}, errors.WrongElements, r"'on' must be torch.bool"),
    "sparse": ({"on": torch.ones(2, 5, dtype=torch.bool).to_sparse()}, errors.WrongElements, r"dense \(strided\)"),
    "real window": ({"w": 3.0}, errors.WrongNumber, r"'w' must be a Python int, not float 3.0"),
    "bool window": ({"w": True}, errors.WrongNumber, r"'w' must be a Python int, not bool True"),
    "tensor window": ({"w": torch.tensor(3)}, errors.WrongNumber, r"'w' must be a Python int, not Tensor"),
    "huge window": ({"w": 2**63}, errors.WrongNumber, r"62 bits"),
    "infinite": ({"s": float("inf")}, errors.WrongNumber, r"'s' must be a finite number, not float inf"),
    "nan": ({"s": float("nan")}, errors.WrongNumber, r"finite"),
    "text number": ({"s": "1"}, errors.WrongNumber, r"'s' must be a Python float, not str"),
    "batch": (
        {"k": torch.ones(3, 5, 2, 3)},
        errors.SizeConflict,
        r"batch size of 'k' is 3, but that of 'q' is 2 \(a batch",
    ),
    "time": ({"g": torch.ones(2, 4, 4)}, errors.SizeConflict, r"the time size of 'g' is 4, but that of 'q' is 5"),
    "key": ({"k": torch.ones(2, 5, 2, 4)}, errors.SizeConflict, r"the key size of 'k' is 4, but that of 'q' is 3"),
    "heads": (
        {"k": torch.ones(2, 5, 3, 3)},
        errors.HeadSize,
        r"'k' has 3 heads, which does not divide the 4 heads of 'q'",
    ),
    "no heads": ({"k": torch.ones(2, 5, 0, 3)}, errors.EmptyAxis, r"the head size of 'k' is 0"),
    "no keys": ({"q": torch.ones(2, 5, 4, 0)}, errors.EmptyAxis, r"the key size of 'q' is 0; it must be at least 1"),
    "device": ({"g": torch.ones(2, 5, 4, device="meta")}, errors.MixedDevices, r"'g' is on meta, but 'q' is on cpu"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses(case: str) -> None:
    change, kind, message = WRONG[case]
    given = {name: value for name, value in (good() | change).items() if value is not None}
    with pytest.raises(kind, match=message) as caught:
        bind(MIXED, (), given)
    assert type(caught.value) is kind
    if isinstance(caught.value, errors.ParameterError):
        name = next(iter(change))
        assert caught.value.parameter == name
        span = caught.value.span
        assert span.text == name
        assert f"spec.sma:{span.line}:{span.column}: mixed: " in str(caught.value)
        assert str(caught.value).endswith("^" * len(name))


def test_refuses_wrong_counts() -> None:
    values = list(good().values())
    with pytest.raises(errors.TooManyArguments, match=r"9 positional arguments for 8 parameters: 'q', 'k', 'v'"):
        bind(MIXED, [*values, 1], {})
    with pytest.raises(errors.RepeatedArgument, match=r"'q' is given twice"):
        bind(MIXED, values[:1], good())


def test_the_first_widest_batch_rules() -> None:
    given = good() | {"q": torch.randn(1, 5, 4, 3)}
    assert bind(MIXED, (), given).sizes["batch"] == 2
    given["v"] = torch.randn(7, 5, 2, 6)
    with pytest.raises(errors.SizeConflict, match=r"batch size of 'v' is 7, but that of 'k' is 2"):
        bind(MIXED, (), given)


def test_the_largest_head_size_rules() -> None:
    given = good() | {"v": torch.randn(2, 5, 8, 6)}
    assert bind(MIXED, (), given).sizes["head"] == 8
    given["v"] = torch.randn(2, 5, 6, 6)
    with pytest.raises(errors.HeadSize, match=r"'q' has 4 heads, which does not divide the 6 heads of 'v'"):
        bind(MIXED, (), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    given = good() | {"q": torch.randn(2, 5, 4, 3).to(dtype)}
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert bind(MIXED, (), given).compute == expected


def test_nan_in_a_gate_names_the_first_place() -> None:
    given = good()
    gate = torch.zeros(2, 5, 4)
    gate[1, 3, 2] = float("nan")
    bound = bind(MIXED, (), given | {"g": gate})
    with pytest.raises(errors.NaNInGate, match=r"'g' feeds a mask and holds NaN, first at batch 1, time 3, head 2"):
        check_values(MIXED, roles(MIXED), bound)
    gate.fill_(float("-inf"))
    check_values(MIXED, roles(MIXED), bind(MIXED, (), given | {"g": gate}))


def test_values_of_queries_are_looked_at_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(2, 5, 4, 3)
    query[0, 0, 0, 0] = float("inf")
    bound = bind(MIXED, (), good() | {"q": query})
    check_values(MIXED, roles(MIXED), bound)
    monkeypatch.setenv("SMA_SELF_CHECK", "1")
    with pytest.raises(errors.NotFinite, match=r"'q' must be finite"):
        check_values(MIXED, roles(MIXED), bound)


BOUNDS = {
    "no tensor": ([0, 5], "must be a tensor, not list"),
    "dtype": (torch.tensor([0.0, 5.0]), "must be int32 or int64, but is torch.float32"),
    "shape": (torch.tensor([[0, 5]]), r"must have shape \[S \+ 1\] with S >= 1, but has \[1, 2\]"),
    "one": (torch.tensor([0]), r"has \[1\]"),
    "device": (torch.tensor([0, 5], device="meta"), "is on meta, but the tensors are on cpu"),
    "start": (torch.tensor([1, 5]), "must start at 0, but starts at 1"),
    "unsorted": (torch.tensor([0, 4, 3, 5]), "must not fall, but goes from 4 to 3 at entry 2"),
    "end": (torch.tensor([0, 4]), "must end at 5, the length of the pack, but ends at 4"),
    "past the end": (torch.tensor([0, 6], dtype=torch.int32), "but ends at 6"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_refuses_bounds(case: str) -> None:
    bounds, message = BOUNDS[case]
    packed = {name: x[:1] if isinstance(x, torch.Tensor) else x for name, x in good().items()}
    with pytest.raises(errors.BadSequenceBounds, match=message):
        check_pack(MIXED, bind(MIXED, (), packed), bounds)


def test_packs_have_a_batch_of_one() -> None:
    with pytest.raises(errors.PackedBatch, match=r"every batch is 1, but that of 'q' is 2"):
        check_pack(MIXED, bind(MIXED, (), good()), torch.tensor([0, 5]))
    packed = {name: x[:1] if isinstance(x, torch.Tensor) else x for name, x in good().items()}
    check_pack(MIXED, bind(MIXED, (), packed), torch.tensor([0, 0, 3, 5, 5], dtype=torch.int32))


def test_values_are_not_read_while_torch_transforms() -> None:
    read: list[bool] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        read.append(args.readable(x))
        return x.sum()

    x = torch.ones(3)
    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(torch.ones(2, 3))
    look(torch.ones(3, device="meta"))
    torch.fx.experimental.proxy_tensor.make_fx(look, tracing_mode="fake")(x)
    assert read == [True, False, False, False, False]


def test_roles() -> None:
    found = roles(MIXED)
    assert found.gates == {"g", "doc", "on"}
    assert found.operands == found.cast == {"q", "k", "v"}
    turned = op_of(
        "op turned(q, k, v, turn: [time, head, mode], beta: [time, head], b: [head, key]):\n"
        "    return attend(causal, rope(q + b, turn), beta * k, v)\n"
    )
    found = roles(turned)
    assert found.turns == {"turn"}
    assert found.phases == {"turn"}
    assert found.operands == {"q", "k", "v", "turn", "beta", "b"}
    assert found.cast == {"q", "k", "v"}


def test_refuses_more_turns_than_pairs() -> None:
    op = op_of("op turned(q, k, v, turn: [head, mode]):\n    return attend(causal, rope(q, turn), rope(k, turn), v)\n")
    x = torch.ones(1, 3, 2, 5)
    check_turns(op, roles(op), bind(op, (x, x, x, torch.ones(2, 2)), {}))
    with pytest.raises(errors.TooManyTurns, match=r"'turn' has 3 angles along mode, but a key of size 5 has 2 pairs"):
        check_turns(op, roles(op), bind(op, (x, x, x, torch.ones(2, 3)), {}))


def test_errors_cross_processes() -> None:
    with pytest.raises(errors.HeadSize) as caught:
        bind(MIXED, (), good() | {"k": torch.ones(2, 5, 3, 3)})
    back = pickle.loads(pickle.dumps(caught.value))
    assert type(back) is errors.HeadSize
    assert str(back) == str(caught.value)
    assert back.span == caught.value.span
