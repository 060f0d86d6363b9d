"""Run every ONNX file of a folder on the input beside it: NAME.x.npy in, NAME.y.npy out.

A child of `without_vnni`, which imports as little as it can: an emulated processor is slow. With
enough runs the time of the slowest operator is written, too, as NAME.us.npy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

RUNS = 60
KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm")


def main() -> None:
    """Run the folder that is named on the command line."""
    folder = Path(sys.argv[1])
    timed = any(folder.glob("* uint8.onnx"))
    for path in sorted(folder.glob("*.onnx")):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        if timed:
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: np.load(path.with_suffix(".x.npy"))}
        for _ in range(RUNS if timed else 1):
            (made,) = session.run(None, given)
        np.save(path.with_suffix(".y.npy"), made)
        if timed:
            written = Path(session.end_profiling())
            events = json.loads(written.read_text())
            written.unlink()
            taken = sorted(
                event["dur"]
                for event in events
                if event.get("args", {}).get("op_name") in KERNELS
                and event["name"].endswith("kernel_time")
            )
            np.save(path.with_suffix(".us.npy"), taken[len(taken) // 4])


if __name__ == "__main__":
    main()
