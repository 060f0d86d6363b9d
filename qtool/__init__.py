"""qtool trains, converts, exports and compares low-bit vision networks.

For people who have their own training loop:

    model = qtool.prepare(model, quantization, example)
    qtool.calibrate(model, batches)
    ...                                 # train as usual; set_progress(model, share) moves what is
                                        # scheduled, dampening_penalty(model) joins the loss;
                                        # begin_step(model) before each step lets torch.compile
                                        # trace model.forward as a whole
    qtool.reestimate_batch_norm(model, batches)
    qtool.round_biases(model)
    qtool.health(model, batch)          # findings: dead channels, rows of few codes and the like
    integer = qtool.convert(model)
    qtool.export_onnx(integer, example, "model.onnx")

`example` is a tensor, a tuple of inputs by position or a dict of inputs by keyword, and fixes what
is taken from each of `batches`, which may be a loader's and hold labels, too. What is refused, left
float or not folded stands in qtool/quantizers/README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtool.conversion.biases import round_biases
    from qtool.conversion.to_integer import convert
    from qtool.export.writing.onnx_qdq import export_onnx
    from qtool.quantizers.calibrate import calibrate
    from qtool.quantizers.control import begin_step, dampening_penalty, set_progress
    from qtool.quantizers.health import health
    from qtool.quantizers.prepare import prepare
    from qtool.training.batch_norm import reestimate_batch_norm

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "begin_step",
    "calibrate",
    "convert",
    "dampening_penalty",
    "export_onnx",
    "health",
    "prepare",
    "reestimate_batch_norm",
    "round_biases",
    "set_progress",
]

_HOME = {
    "prepare": "qtool.quantizers.prepare",
    "calibrate": "qtool.quantizers.calibrate",
    "begin_step": "qtool.quantizers.control",
    "set_progress": "qtool.quantizers.control",
    "dampening_penalty": "qtool.quantizers.control",
    "health": "qtool.quantizers.health",
    "reestimate_batch_norm": "qtool.training.batch_norm",
    "convert": "qtool.conversion.to_integer",
    "round_biases": "qtool.conversion.biases",
    "export_onnx": "qtool.export.writing.onnx_qdq",
}


def __getattr__(name: str) -> Any:
    """Load torch only when one of the functions is used, so that `--help` stays quick."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'qtool' has no attribute {name!r}")
