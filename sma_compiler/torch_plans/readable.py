"""Whether code may look at the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor may be looked at: not while torch traces, transforms or captures the call."""
    if torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not (wrapped or isinstance(tensor, FakeTensor) or tensor.is_meta)
