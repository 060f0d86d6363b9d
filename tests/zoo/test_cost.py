"""What an export costs: time and memory of a process of its own, at 224 pixels."""

import json
import subprocess
import sys

import pytest

MEASURED = """
import json, resource, sys, tempfile, time, torch, qtool
from torchvision import models
torch.manual_seed(0)
torch.set_num_threads(1)
images = torch.randn(2, 3, 224, 224)
recipe = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
prepared = qtool.prepare(models.get_model(sys.argv[1], weights=None), recipe, example=images)
integer = qtool.convert(prepared.eval())
del prepared
began = time.process_time()
with tempfile.TemporaryDirectory() as folder:
    qtool.export_onnx(integer, images, f"{folder}/m.onnx")
seconds = time.process_time() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seconds", "gibibytes"), [("resnet50", 25, 2.5), ("vit_b_16", 60, 4)]
)
def test_an_export_takes_so_much(name: str, seconds: float, gibibytes: float) -> None:
    """Of processor time on one thread; the memory is that of the whole process, from prepare on."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, name],
        capture_output=True,
        text=True,
        check=True,
    )
    took, held = json.loads(ran.stdout.splitlines()[-1])

    assert took < seconds
    assert held < gibibytes
