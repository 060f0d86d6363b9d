"""Everything qtool raises on purpose.

QtoolError              exit code 1
├── InputError          2: a file, folder, device or option is not what is needed
│   ├── RecipeError     2: the recipe is wrong; lists every problem and its place
│   ├── DataError       2: a data set or a file of weights is missing or malformed
│   ├── DamagedFileError  2: a file is not what was written into it
│   ├── MissingRuntimeError  2: what runs a target's files is not installed, or is too old
│   └── ModelError      2: a model or an input is not what can be quantized; a ValueError, too
├── TrainingError       1: training cannot go on, such as after a loss that is not finite
├── WriteError          1: a file cannot be written: the disk is full, its folder gone
├── ConversionError     1: the model has no integer form
├── PredictionError     1: some images could not be read
└── ExportError         1: the ONNX file is invalid or the runtime disagrees with the model
"""


class QtoolError(Exception):
    """An error the user can act on: the command line shows its message, not a traceback.

    Attributes:
        told: another process of the same training says it.
    """

    exit_code = 1
    told = False


class InputError(QtoolError):
    """A file, folder, device or option is not what is needed."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe is wrong. The message lists every problem and where it is."""


class DataError(InputError):
    """A data set or a file of weights is missing or malformed."""


class DamagedFileError(InputError):
    """A file is not what was written into it: its digest is another."""


class MissingRuntimeError(InputError):
    """The runtime of a target is not installed, or too old."""


class ModelError(InputError, ValueError):
    """A model, its numbers or an input are not what can be quantized.

    Who calls qtool from Python gave a wrong argument, and may catch a ValueError.
    """


class TrainingError(QtoolError):
    """Training cannot go on."""


class WriteError(QtoolError):
    """A file, or standard output, cannot be written."""


class ConversionError(QtoolError):
    """The model has no integer form."""


class PredictionError(QtoolError):
    """Some images could not be read, or not be classified."""


class ExportError(QtoolError):
    """The ONNX file is invalid, or the runtime disagrees with the integer model."""
