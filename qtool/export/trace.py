"""What torch.onnx makes of a model: one traced graph, without the noise."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn

from qtool.errors import ExportError


def traced(model: nn.Module, example: Tensor, opset: int, batch: int | None) -> ir.Model:
    """Return the ONNX graph of a model; the input is `images`, the output `logits`.

    Raises:
        ExportError: If torch.onnx cannot express the model.
    """
    if batch is None and example.shape[0] == 1:
        example = torch.cat([example, example])  # a batch of one would be taken for a constant
    if batch is not None:
        example = example[:1].expand(batch, *example.shape[1:]).contiguous()
    shapes = None if batch is not None else ({0: torch.export.Dim("batch")},)
    try:
        with quietly():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"torch.onnx cannot express the model: {reason[0] if reason else error!r}"
        ) from error
    assert program is not None
    return program.model


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings and log lines below errors while a graph is traced."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
