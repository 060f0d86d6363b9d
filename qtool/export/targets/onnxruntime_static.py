"""ONNX Runtime's own quantization, which an exported file can be timed against."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from qtool.errors import ExportError
from qtool.export.targets.target import Array


def quantize(given: Path, made: Path, batches: Sequence[Array]) -> None:
    """Write a float file with QuantizeLinear and DequantizeLinear, as `quantize_static` does.

    int8 weights per channel, uint8 activations with ranges of the batches: what its documentation
    names for processors.

    Raises:
        ExportError: If it fails.
    """
    import onnx
    import onnxruntime as ort
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Gives one batch after the other."""

        def __init__(self) -> None:
            name = onnx.load(str(given), load_external_data=False).graph.input[0].name
            self._left = iter([{name: batch} for batch in batches])

        def get_next(self) -> dict[str, Array]:
            """Return the next batch by the name of the input; None at the end."""
            return cast(dict[str, Array], next(self._left, None))  # its annotation knows no None

    ready = made.with_name(f"{made.stem}.ready.onnx")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it asks for what was done already
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(given), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(made),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:
        words = str(error).strip().splitlines()
        raise ExportError(
            f"ONNX Runtime {ort.__version__} cannot quantize the float network by itself; its "
            f"quantize_static stops with: {words[0] if words else error!r}"
        ) from error
    finally:
        logging.disable(before)
