"""Whether a file that breaks the rule of agreement disagrees, or rounding is behind it.

A number that is missing, and a weight code that differs, always refuse a file. Anything else is
excused in two cases: the controls move the outputs as far, or the codes of all quantized values are
the integer model's, so that only what is float behind the last of them can differ.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from qtool.errors import InputError, QtoolError
from qtool.export.proof.agreement import Compared, compare_outputs
from qtool.export.proof.control import Controls, controls_of
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.targets.target import Runtime, Session
from qtool.graph.inputs import Inputs

IMAGES = 8  # that differ most, whose codes are compared
FLOAT_TAIL = 1e-4  # of the largest output: what float32 makes of what follows equal codes
Batches = Callable[[], Iterable[tuple[object, Tensor]]]


def judged(
    path: Path, integer: nn.Module, batches: Batches, runtime: Runtime
) -> tuple[Compared, Controls | None]:
    """Run a file and its integer model on the same inputs; say how far they agree, and why not.

    Raises:
        ExportError: If there is no image, an output has another shape, or the file does not run.
        InputError: If the runtime cannot load the file.
    """
    session = runtime.open(path)
    compared = compare_outputs(session, integer, batches())
    controls = controls_of(session, _plain(path, runtime), integer, batches(), compared)
    compared = with_controls(compared, controls)
    return with_codes(compared, path, integer, batches, runtime), controls


def _plain(path: Path, runtime: Runtime) -> Session | None:
    """Return a file, opened without optimizations; None where the runtime then cannot load it."""
    try:
        return runtime.open(path, plainly=True)
    except InputError:
        return None


def with_controls(compared: Compared, controls: Controls | None) -> Compared:
    """Return the comparison with the controls beside its figures.

    What breaks the rule, but differs by no more than rounding may, does not disagree; a note says
    so.
    """
    if controls is None:
        return compared
    excused, notes = list[str](), list[str]()
    for name, why in compared.reasons.items():
        moved = controls.outputs[name]
        if name not in compared.not_finite and moved.explains(compared.outputs[name]):
            excused.append(name)
            notes.append(
                f"{compared.named(name, why)}; this is no disagreement, for float rounding alone "
                f"moves the file's own outputs by {moved.median:.3g} in the median"
            )
    return compared.excusing(excused, notes).with_figures(
        {
            name: {"control_difference": moved.median, "control_max_difference": moved.largest}
            for name, moved in controls.outputs.items()
        }
    )


def with_codes(
    compared: Compared, path: Path, integer: nn.Module, batches: Batches, runtime: Runtime
) -> Compared:
    """Return the comparison without what equal codes excuse; a note says so.

    The codes are those of the images, of one batch, that differ most. Outputs may then differ as
    float32 rounds what is computed of equal codes, and by no more: a wrong bias behind the last
    codes is no rounding.
    """
    near = [
        name
        for name in compared.reasons
        if name not in compared.not_finite and _is_float_tail(compared, name)
    ]
    if not near:
        return compared
    try:
        inputs = _furthest(compared, near[0], batches)
        found = compare_site_codes(path, integer, inputs, runtime)
    except QtoolError:  # no annotations, or none that this runtime can show
        return compared
    if any(one.differing for one in found.values()):
        return compared
    said = f"the codes of all {len(found)} quantized values are the integer model's"
    notes = [
        f"{compared.named(name, compared.reasons[name])}; this is no disagreement, for {said}"
        for name in near
    ]
    return compared.excusing(near, notes)


def _is_float_tail(compared: Compared, name: str) -> bool:
    """Tell whether an output differs by no more than float32 makes of equal codes."""
    largest = max(float(expected.abs().max()) for expected, _ in compared.pairs[name])
    return compared.outputs[name].max_abs_difference <= FLOAT_TAIL * largest


def _furthest(compared: Compared, name: str, batches: Batches) -> Inputs:
    """Return the images of one batch that an output differs most for."""
    differences = [
        (given.double() - expected.double()).abs().flatten()
        for expected, given in compared.pairs[name]
    ]
    worst = max(range(len(differences)), key=lambda index: float(differences[index].max()))
    filled = ((batch, labels) for batch, labels in batches() if len(labels))
    batch, labels = next(given for index, given in enumerate(filled) if index == worst)
    rows = len(labels)
    by_image = differences[worst].reshape(rows, -1) if len(differences[worst]) % rows == 0 else None
    order = torch.arange(rows) if by_image is None else by_image.amax(1).argsort(descending=True)
    chosen = order[:IMAGES]
    return Inputs.of(batch).each(lambda x: x[chosen] if x.ndim and len(x) == rows else x)
