"""Whether an ONNX file still is what was written, or what a tool made of that; opens without torch.

What a tool rewrote has other nodes or tensors, so that the digest of the whole says nothing of it.
Then the codes, scales and zero points of each layer are looked for, by the digests in metadata.
"""

from importlib.util import find_spec
from pathlib import Path

from qtool.errors import DamagedFileError, InputError
from qtool.export.targets.target import TARGETS
from qtool.export.writing.file_digest import KEY, State, state_of
from qtool.files.reading import intact

RUNS = "onnxruntime"  # the target whose runtime takes every file
AT_ONCE = 3  # layers that a message names


def refuse_damaged(path: Path) -> None:
    """Check that a file is what was written, or what a tool made of that, and no bomb.

    How much a graph makes of its constants is told where onnx is installed only: who just runs
    files may do without.

    Raises:
        DamagedFileError: If it is damaged; names the part.
        InputError: If it cannot be read, what qtool wrote into it is damaged, or a runtime would
            make more of it than its size allows.
    """
    if why := why_damaged(path):
        raise DamagedFileError(f"{path}: {why}")
    if find_spec("onnx") is not None:
        from qtool.export.reading import read_model

        read_model(path, tensors=False)


def why_damaged(path: Path) -> str:
    """Return what is damaged in a file, and what to do; "" if nothing is, as far as it tells.

    Raises:
        InputError: If it cannot be read, or what qtool wrote into it is damaged.
    """
    try:
        state = state_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not an ONNX model: {error}") from error
    if state.kind == "damaged":
        return (
            f"damaged, or edited by hand: {state.why} is not what was written (SHA-256); export "
            f"again, or take {KEY} out of its metadata to use the file as it is"
        )
    if state.kind == "as_written" or not state.layers:
        return ""
    return _why_layers_are_not(path, state)


def _why_layers_are_not(path: Path, state: State) -> str:
    """Return which layers of a file that was rewritten are not those that metadata say."""
    if any(find_spec(name) is None for name in ("onnx", "torch")):
        return ""  # who only runs files cannot take one apart
    from qtool.export.proof.stored_weights import lost_layers

    with intact(path, "what qtool wrote into it is damaged"):
        lost = lost_layers(path, TARGETS[RUNS]().runtime)
    if not lost:
        return ""
    more = f" and {len(lost) - AT_ONCE} more" if len(lost) > AT_ONCE else ""
    named = ", ".join(lost[:AT_ONCE]) + more
    return (
        f"damaged, or rewritten beyond recognition: no tensor has the codes of {named} that its "
        f"metadata say (SHA-256); export again, or take qtool.layer.* out of those"
    )
