"""Do other versions of ONNX Runtime, and OpenVINO, load a file, agree, and run it in integers?

    python -m venv /tmp/ort119 && /tmp/ort119/bin/pip install onnxruntime==1.19.2
    python -m venv /tmp/openvino && /tmp/openvino/bin/pip install openvino
    python tests/benchmarks/readers.py --networks resnet18 --bits 4 \\
        --python /tmp/ort119/bin/python --python /tmp/openvino/bin/python

Each file is written here, and opened by every interpreter that is given, which needs numpy and one
of the runtimes and nothing else. The first row of a network is this interpreter's own. Counted
are convolutions and linear layers in integer kernels, and all quantizable operators: for ONNX
Runtime in the graph that it makes of the file, for OpenVINO in its runtime graph, by the precision
that each layer runs in. What the same images times 1 + 1e-5 change in ONNX Runtime is the control:
an untrained network makes much of one code that differs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from integers import machine, network, quantized

import qtool
from qtool.export.proof.control import SCALED
from qtool.export.proof.gate import run
from qtool.export.proof.islands import CONVOLUTIONS, LINEARS, RuntimeGraph
from qtool.export.targets.onnxruntime import OnnxRuntime

CONVOLVED = (*CONVOLUTIONS, "QLinearConv")
MULTIPLIED = (*LINEARS, "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")

# What every interpreter runs: FILE IMAGES OUTPUTS GRAPH; prints JSON.
ONNX_RUNTIME = """
import json, sys
import numpy as np, onnxruntime as ort
file, images, outputs, graph = sys.argv[1:]
options = ort.SessionOptions()
options.log_severity_level = 4
options.optimized_model_filepath = graph
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
np.save(outputs, np.concatenate([session.run(None, {name: x[None]})[0] for x in np.load(images)]))
print(json.dumps({"reader": f"onnxruntime {ort.__version__}"}))
"""
OPENVINO = """
import json, sys
import numpy as np, openvino as ov
file, images, outputs, graph = sys.argv[1:]
compiled = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(outputs, np.concatenate([compiled([x[None]])[0] for x in np.load(images)]))
rows = []
for op in compiled.get_runtime_model().get_ops():
    info = op.get_rt_info()
    said = [str(info[key].value if hasattr(info[key], "value") else info[key])
            for key in ("layerType", "runtimePrecision", "primitiveType")]
    rows.append(said)
print(json.dumps({"reader": f"openvino {ov.__version__.split('-')[0]}", "layers": rows}))
"""
QONNX = """
import json, sys
from importlib.metadata import version
import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
file, images, outputs, graph = sys.argv[1:]
model = ModelWrapper(file)
del model.graph.value_info[:]  # it takes no value that is listed twice
model = model.transform(InferShapes())
given, made = model.graph.input[0].name, model.graph.output[0].name
np.save(outputs, np.concatenate([execute_onnx(model, {given: x[None]})[made]
                                 for x in np.load(images)]))
print(json.dumps({"reader": f"qonnx {version('qonnx')}", "layers": []}))  # it has no kernels
"""
READERS = {"openvino": OPENVINO, "qonnx": QONNX, "onnxruntime": ONNX_RUNTIME}
PROBE = f"""
from importlib.util import find_spec
print(next(name for name in {list(READERS)} if find_spec(name)))
"""


def read_by(python: str, file: Path, folder: Path) -> tuple[str, np.ndarray, str]:
    """Run a file by an interpreter; return what read it, its outputs, and what ran in integers.

    Raises:
        RuntimeError: If it cannot; says the last line of its errors.
    """
    library = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True)
    code = READERS[library.stdout.strip()]
    paths = [str(folder / name) for name in ("images.npy", "outputs.npy", "graph.onnx")]
    ended = subprocess.run(
        [python, "-c", code, str(file), *paths], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1][:200])
    said = json.loads(ended.stdout.splitlines()[-1])
    counted = _of_openvino(said["layers"]) if "layers" in said else _of_onnx(folder / "graph.onnx")
    return said["reader"], np.load(paths[1]), counted


def _of_onnx(path: Path) -> str:
    """Return what of an optimized graph runs in integers."""
    graph = RuntimeGraph(onnx.load(str(path)).graph, OnnxRuntime())
    found = graph.quantizable()
    kinds = [[n for n in found if n.op_type in of] for of in (CONVOLVED, MULTIPLIED)]
    return _words([(sum(map(graph.in_integers, kind)), len(kind)) for kind in (*kinds, found)])


def _of_openvino(layers: list[list[str]]) -> str:
    """Return what of a runtime graph runs in integers, from layer types and their precisions."""
    kinds = [("Convolution", "GroupConvolution"), ("FullyConnected", "MatMul")]
    joined = ("Eltwise", "Add", "Multiply", "Pooling", "AvgPool", "MaxPool", "Concat")
    groups = [*kinds, (*kinds[0], *kinds[1], *joined)]
    counts = []
    for group in groups:
        of = [precision for kind, precision, _ in layers if kind in group]
        counts.append((sum(precision.lower() in ("u8", "i8") for precision in of), len(of)))
    return _words(counts)


def _scaled(path: Path, images: torch.Tensor) -> float:
    """Return the largest change of a logit where the images are nearly the same: the control."""
    session = OnnxRuntime().open(path)
    plain, moved = (run(session, given) for given in (images, images * SCALED))
    return float((moved - plain).abs().max())


def _words(counts: list[tuple[int, int]]) -> str:
    return " | ".join(f"{done}/{of}" for done, of in counts)


def main() -> None:
    """Print a row for each network and reader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="resnet18,mobilenet_v2")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--place", default="every_value")
    parser.add_argument("--python", action="append", default=[], help="interpreter; again for more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print("| network | reader | convolutions | linear layers | operators | off, sigma | top-1 |")
    print(f"|{'---|' * 7}", flush=True)
    for name in options.networks.split(","):
        for bits in map(int, options.bits.split(",")):
            with TemporaryDirectory() as kept:
                folder = Path(kept)
                integer = quantized(network(name, options.px), bits, options.px, options.place)
                images = torch.randn(options.images, 3, options.px, options.px)
                qtool.export_onnx(integer, images[:2], folder / "m.onnx")
                np.save(folder / "images.npy", images.numpy())
                with torch.no_grad():
                    expected = torch.cat([integer(image[None]) for image in images]).numpy()
                moved = _scaled(folder / "m.onnx", images) / float(expected.std())
                print(f"| {name} W{bits}A{bits} | input x 1.00001 |  |  |  | {moved:.1e} | |")
                for python in [sys.executable, *options.python]:
                    row = f"| {name} W{bits}A{bits} |"
                    try:
                        reader, given, counted = read_by(python, folder / "m.onnx", folder)
                    except (RuntimeError, subprocess.CalledProcessError) as error:
                        print(f"{row} {python} | failed: {error} |", flush=True)
                        continue
                    off = float(np.abs(given - expected).max() / expected.std())
                    same = float((given.argmax(1) == expected.argmax(1)).mean())
                    print(f"{row} {reader} | {counted} | {off:.1e} | {same:.0%} |", flush=True)


if __name__ == "__main__":
    main()
