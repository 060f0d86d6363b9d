"""How a file is to be written: what an export is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qtool.errors import InputError, MissingRuntimeError
from qtool.export.targets.target import TARGETS, Runtime
from qtool.export.writing.ends import Ends
from qtool.export.writing.qdq_modules import Ceil
from qtool.images.usage import Usage


@dataclass(frozen=True)
class Writing:
    """How a file is to be written.

    Attributes:
        target: name in TARGETS.
        batch: fixed batch size; None leaves it dynamic, where the target says nothing else.
        annotate: write quantization_annotation.
        ceil: how inputs with rounding ceil are written.
        metadata: goes into metadata_props beside the description.
        usage: its classes, and how images are prepared; goes there, too.
        unproven: write the file where the target's runtime is not installed, too.
        ends: what the file does beside what its network does; `write_onnx` writes the network.
        any_size: leave height and width open, where the network takes other sizes.

    Raises:
        InputError: If it takes decoded pictures, which are prepared in one size.
        RecipeError: If there is no such target.
    """

    target: str = "onnxruntime"
    batch: int | None = None
    annotate: bool = True
    ceil: Ceil = "exact"
    metadata: Mapping[str, object] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    unproven: bool = False
    ends: Ends = field(default_factory=Ends)
    any_size: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be before any work is done for it."""
        _ = TARGETS[self.target]
        if self.any_size and self.ends.preprocess:
            raise InputError(
                "--any-size: with --preprocess a file takes pictures of any size already, and "
                "brings them to the network's; leave out one of the two"
            )

    def runtime(self) -> tuple[Runtime | None, str]:
        """Return what proves the file, or None and why there is nothing.

        Raises:
            MissingRuntimeError: If it is not installed, or too old, and the file must be proven.
        """
        try:
            return TARGETS[self.target]().runtime, ""
        except MissingRuntimeError as error:
            if not self.unproven:
                raise
            return None, str(error)

    def to(self, target: str) -> "Writing":
        """Return the same, for another target."""
        return replace(self, target=target)

    def saying(self, metadata: Mapping[str, object], usage: Usage) -> "Writing":
        """Return the same, with metadata.

        Raises:
            InputError: If the file is to prepare pictures, and nobody says how.
        """
        self.ends.refuse_unless_known(usage)
        return replace(self, metadata=metadata, usage=usage)
