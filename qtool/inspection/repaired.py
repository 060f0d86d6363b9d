"""An ONNX file that other tools rewrote, mended and looked at again."""

from pathlib import Path

from qtool.export.proof.damage import refuse_damaged
from qtool.export.repair.repaired import repaired
from qtool.export.writing.saved import save_with_digest
from qtool.files.whole import write_atomically
from qtool.inspection.inspect import inspect_source
from qtool.inspection.onnx import read_onnx
from qtool.reports.inspections import Inspection
from qtool.runs.given import refuse_no_place_of_repair


def repair(source: Path, output: Path) -> Inspection:
    """ONNX file that other tools rewrote -> annotated and packed again, proven -> what it holds.

    Raises:
        InputError: If it is damaged, or the output is no place for an ONNX file.
        WriteError: If the output cannot be written.
    """
    refuse_no_place_of_repair(source, output)
    refuse_damaged(source)
    made, done = repaired(read_onnx(source), source)
    write_atomically(output, lambda path: save_with_digest(made, path))
    return inspect_source(output).model_copy(update={"repaired": str(output), "repairs": done})
