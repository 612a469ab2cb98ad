"""Calls with gradients that were made before: the same gradients, and refused what has none."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from runtime.stand_in import use
from runtime.test_opaque import SCALE, inputs, leaves
from torch import Tensor

import sma_compiler as sma
from sma_compiler.backend_errors import KernelTooLarge, NoDoubleBackward
from sma_compiler.runtime import again, direct


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> sma.CompiledOp:
    monkeypatch.setattr(again, "replayable", lambda _: True)
    return use(monkeypatch)


def known(op: sma.CompiledOp) -> list[type | None]:
    return [None if found is None else type(found) for found in op.program.direct.values()]


def test_gradients_are_those_of_the_first_call(op: sma.CompiledOp) -> None:
    for number in range(4):
        own = leaves(inputs())
        y = op(*own, SCALE, backend="triton")
        assert ("_Direct" in type(y.grad_fn).__name__) == (number > 0)
        for wanted in (own, own[3:], own[:1]):
            grads = torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)
            expected = torch.autograd.grad(op(*own, SCALE, backend="torch").square().sum(), wanted)
            torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-4)
    assert known(op) == [direct.Direct, None]  # Triton's calls, and torch's


def test_arguments_by_name_in_any_order(op: sma.CompiledOp) -> None:
    q, k, v, g = own = leaves(inputs())
    found = [op(scale=SCALE, g=g, v=v, backend="triton", k=k, q=q) for _ in range(3)]
    expected = torch.autograd.grad(op(*own, SCALE, backend="torch").sum(), own)
    torch.testing.assert_close(torch.autograd.grad(found[-1].sum(), own), expected, rtol=1e-4, atol=1e-4)


def test_one_tensor_may_be_several_arguments(op: sma.CompiledOp) -> None:
    q, _, v, g = leaves(inputs())
    for _ in range(3):
        (grad,) = torch.autograd.grad(op(q, q, v, g, SCALE, backend="triton").sum(), [q])
        (expected,) = torch.autograd.grad(op(q, q, v, g, SCALE, backend="torch").sum(), [q])
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)
    k = q.detach().clone()
    (grad,) = torch.autograd.grad(op(q, k, v, g, SCALE, backend="triton").sum(), [q])
    (expected,) = torch.autograd.grad(op(q, k, v, g, SCALE, backend="torch").sum(), [q])
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_what_a_kernel_does_not_take_as_it_is_goes_the_long_way(op: sma.CompiledOp) -> None:
    q, k, v, g = leaves(inputs())
    for _ in range(3):
        y = op(q, k, v[:1], g, SCALE, backend="triton")
        (grad,) = torch.autograd.grad(y.sum(), [v])
        (expected,) = torch.autograd.grad(op(q, k, v[:1], g, SCALE, backend="torch").sum(), [v])
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)
    assert known(op) == [None, None]


def test_double_backward_is_refused(op: sma.CompiledOp) -> None:
    own = leaves(inputs())
    for _ in range(3):
        y = op(*own, SCALE, backend="triton")
        (grad,) = torch.autograd.grad(y.square().sum(), own[:1], create_graph=True)
        with pytest.raises(NoDoubleBackward):
            grad.sum().backward()


def test_saved_tensors_may_be_packed_away(op: sma.CompiledOp) -> None:
    own = leaves(inputs())
    op(*own, SCALE, backend="triton")

    def unpack(x: Tensor) -> Tensor:
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), unpack):
        y = op(*own, SCALE, backend="triton")
    expected = torch.autograd.grad(op(*own, SCALE, backend="torch").sum(), own)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), own), expected, rtol=1e-4, atol=1e-4)


def test_under_autocast(op: sma.CompiledOp) -> None:
    given = inputs()
    for narrow in (False, True):
        q, k, v, g = given
        own = leaves((q.bfloat16(), k.bfloat16(), v.bfloat16(), g) if narrow else given)
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = op(*own, SCALE, backend="triton")
            assert y.dtype == torch.bfloat16
            grads = torch.autograd.grad(y.float().sum(), own)
            assert [grad.dtype for grad in grads] == [x.dtype for x in own]
    assert known(op) == [None, direct.Direct]


def test_changed_inputs_are_noticed(op: sma.CompiledOp) -> None:
    own = leaves(inputs())
    for _ in range(2):
        y = op(*own, SCALE, backend="triton")
    with torch.no_grad():
        own[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class OutOfResources(Exception):
    """Named as Triton's."""


def test_a_kernel_too_large_for_the_gpu_gives_way_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*args: object, **keywords: object) -> None:
        raise OutOfResources("out of resource: shared memory, Required: 300000")

    module = ModuleType("large")
    module.gated = gated
    op, given = use(monkeypatch, module), inputs()
    for options in ({"backend": "triton"}, {"plan": "chunked"}):
        with pytest.raises(KernelTooLarge, match=r"does not fit on this GPU: out of resource: shared memory"):
            op(*given, SCALE, **options)
    shape = {"B": 2, "T": 7, "H": 2, "K": 4, "V": 3}
    assert "on an H100   triton chunked" in str(op.explain(shape))
    assert torch.equal(op(*given, SCALE), op(*given, SCALE, backend="torch"))
    assert "on an H100   torch: it does not fit on this GPU: out of resource" in str(op.explain(shape))
    assert "on an H100   triton chunked" in str(op.explain({**shape, "V": 64}))
