"""onnxruntime-web in a browser: the default file, one image at a time."""

from dataclasses import replace

from qtool.export.targets.onnxruntime import onnxruntime
from qtool.export.targets.target import TARGETS, Target


@TARGETS.add
def web() -> Target:
    """onnxruntime-web 1.30 or later, wasm, one image at a time; proven in ONNX Runtime's CPU."""
    return replace(onnxruntime(), batch=1)
