"""Arithmetic in which float32 means float32, whatever a program has allowed for speed.

Processors may multiply in TF32 (10 bits of mantissa) or bfloat16 where they are let, and on CUDA
convolutions are by default. Sums of integers of 8 bits stand that; values of a fake-quantized layer
do not, and a comparison of the two then finds a difference that says nothing of either.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter

import torch
from torch import nn

# As torch 2.9 and later name what may be faster than float32; to read or set allow_tf32, or the
# float32 matmul precision, beside these is an error there.
_OPERATIONS = [
    attrgetter(name)(torch.backends)
    for name in (
        "cuda.matmul",
        "cudnn.conv",
        "cudnn.rnn",
        "mkldnn.matmul",
        "mkldnn.conv",
        "mkldnn.rnn",
    )
]


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Compute in plain float32 inside: no TF32, no bfloat16, no autocast, by the same kernels.

    Everything is as it was afterwards. What code inside allows for itself is its own affair.

    Args:
        model: whose devices are the ones that compute.
    """
    kinds = {"cpu"} | {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    cudnn = torch.backends.cudnn
    allowed = [operation.fp32_precision for operation in _OPERATIONS]
    kernels = cudnn.deterministic, cudnn.benchmark
    with ExitStack() as outer:
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind):
                outer.enter_context(torch.autocast(kind, enabled=False))
        try:
            for operation in _OPERATIONS:
                operation.fp32_precision = "ieee"
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = kernels
            for operation, precision in zip(_OPERATIONS, allowed, strict=True):
                operation.fp32_precision = precision
