"""An ONNX file as a classifier, run in ONNX Runtime; this opens without torch and onnx.

The file may take prepared numbers, or, as `qtool export --preprocess` writes it, the bytes of
decoded pictures of any size.
"""

from pathlib import Path

from qtool.errors import InputError
from qtool.export.proof.damage import refuse_damaged
from qtool.export.targets.onnxruntime import OnnxSession
from qtool.export.targets.target import TARGETS
from qtool.files.reading import intact
from qtool.images.usage import Usage
from qtool.prediction.classifier import Array, Classifier, rule_of

RUNS = "onnxruntime"  # the target whose runtime takes every file
ADVICE = (
    "export it with qtool export, or with export_onnx(classes=..., preprocess=...), which write "
    "qtool.preprocess into its metadata"
)


def open_onnx(path: Path) -> Classifier:
    """Return what an ONNX file computes.

    Raises:
        InputError: If it is missing or damaged, no classifier of pictures, or does not say how
            those are prepared.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a run folder, an integer model or ONNX file")
    refuse_damaged(path)
    session = TARGETS[RUNS]().runtime.open(path)
    assert isinstance(session, OnnxSession)
    with intact(path, "what qtool wrote into it is damaged"):
        usage = Usage.of(session.metadata)
    rule = rule_of(usage, str(path), ADVICE)
    if len(session.inputs) != 1:
        raise InputError(f"{path}: takes {', '.join(session.inputs)}; one picture is all there is")
    given, output = session.inputs[0], _output_of(session, path, len(usage.classes))

    def logits(batch: Array) -> Array:
        return session.run({given: batch})[output]

    if session.types[given] == "tensor(uint8)":
        return Classifier(str(path), usage, rule.pixels, logits, session.batch)
    return Classifier(str(path), usage, rule.prepared, logits, session.batch)


def _output_of(session: OnnxSession, path: Path, classes: int) -> str:
    """Return the output that holds the logits.

    Raises:
        InputError: If none is a row of numbers, one for each class.
    """
    shapes = session.outputs
    name = "logits" if "logits" in shapes else next(iter(shapes))
    shape = shapes[name]
    found = shape[-1] if len(shape) == 2 else None
    if not isinstance(found, int) or found < 2 or classes not in (0, found):
        said = f"{classes} classes" if classes else "a number for each class"
        raise InputError(f"{path}: output {name} has the shape {shape}; needed is [N, {said}]")
    return name
