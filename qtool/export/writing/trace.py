"""What torch.onnx makes of a model: one traced graph, without the noise."""

import builtins
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager, redirect_stderr
from traceback import walk_tb
from types import TracebackType

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from qtool.errors import ExportError
from qtool.export.writing.names import named_inputs, named_outputs
from qtool.export.writing.poolings import FUNCTIONS
from qtool.export.writing.sizes import (
    FixedSizeError,
    OtherSize,
    are_images,
    in_another_size,
    refuse_windows_of_size,
)
from qtool.graph.inputs import Inputs
from qtool.limits import NO_OUTPUT, NOT_EXPRESSED

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SUMMARY = "## Exception summary"  # what torch.onnx writes before the error itself
_SIZE = re.compile(r"\bu\d+\b")  # torch's name for an integer that values decide; zuf0 is a float
_CLASS = re.compile(r"^<class '(?:\w+\.)*(\w+)'>: ")
ANY_SIZE = torch.export.Dim.AUTO  # closed again where the model's code makes a number of it
WRITTEN = 21  # the newest opset whose operators torch.onnx is asked for


DATA_DEPENDENT = (
    "how large a tensor is depends on what the inputs hold, as with the boxes that a detector keeps"
)


class Call:
    """How a model is called, and what it gave: the names and the sizes of a graph's ends.

    Attributes:
        inputs: with the batch of the file, or of two or more where it is left open.
        given: the tensors in them by name.
        outputs: names of what the model gave.
        other: inputs in another size, where height and width are to be open.
        alone: one tensor goes in by position, and one comes out.
    """

    def __init__(
        self, model: nn.Module, example: object, batch: int | None, *, any_size: bool = False
    ) -> None:
        """Call the model, on the CPU, once, and in another size where it is to take any.

        Raises:
            ExportError: If it gives no tensor.
        """
        inputs = Inputs.of(example).to(torch.device("cpu"))
        self.batch = batch
        self._rows = next((len(tensor) for tensor in inputs.tensors if tensor.ndim), 0)
        with torch.no_grad():
            output = inputs.first(1).call(model)
        self.inputs = inputs.each(self._sized)
        self.given = named_inputs(model, self.inputs)
        self.outputs = list(named_outputs(output))
        if not self.outputs:
            raise ExportError(NO_OUTPUT.text(given=f"a {type(output).__name__}"))
        self.other = in_another_size(model, self.inputs) if any_size else OtherSize()
        one = len(self.inputs.args) == 1 and isinstance(self.inputs.args[0], Tensor)
        self.alone = one and not self.inputs.kwargs and isinstance(output, Tensor)

    @property
    def sizes(self) -> tuple[dict[int, object], ...] | None:
        """Return which dimensions are open, of each input; None where none is."""
        if self.batch is not None and self.other.inputs is None:
            return None
        rows, batch = max(2, self._rows), torch.export.Dim("batch")
        open_: tuple[dict[int, object], ...] = tuple(
            {0: batch} if self._has(t, rows) else {} for t in self.given.values()
        )
        if self.other.inputs is None:
            return open_
        found = zip(open_, self.given.values(), strict=True)
        return tuple(
            {**one, t.ndim - 2: ANY_SIZE, t.ndim - 1: ANY_SIZE} if are_images(t) else one
            for one, t in found
        )

    def _has(self, tensor: Tensor, rows: int) -> bool:
        """Tell whether a tensor has an open batch."""
        return self.batch is None and tensor.ndim > 0 and len(tensor) == rows

    def closed(self, graph: ir.Graph) -> list[str]:
        """Return the inputs whose batch should be open in a graph and is not."""
        asked = zip(graph.inputs, self.sizes or (), strict=self.sizes is not None)
        return [
            str(value.name)
            for value, size in asked
            if 0 in size and value.shape is not None and isinstance(value.shape[0], int)
        ]

    def keep_size(self, why: str) -> None:
        """Leave height and width as they are."""
        self.other = OtherSize(why=why)

    def _sized(self, tensor: Tensor) -> Tensor:
        """Return an input with the rows that it is traced with."""
        if not tensor.ndim or len(tensor) != self._rows:
            return tensor
        if self.batch is not None:
            return tensor[:1].expand(self.batch, *tensor.shape[1:]).contiguous()
        # a batch of one would be taken for a constant
        return torch.cat([tensor, tensor]) if self._rows == 1 else tensor


class Flat(nn.Module):
    """A model that takes and gives tensors only, whatever it is called with."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        """Take the inputs whose tensors `forward` stands in for."""
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return every tensor that the model gives."""
        given = iter(tensors)
        output = self.inputs.each(lambda _: next(given)).call(self.model)
        return tuple(named_outputs(output).values())


def traced(model: nn.Module, call: Call, opset: int, ir_version: int | None = None) -> ir.Model:
    """Return the ONNX graph of a model.

    Args:
        model: with standard operators in the place of its layers.
        call: how it is called.
        opset: of the graph; its operators are those of WRITTEN, which later opsets give more types.
        ir_version: of the file; None for what torch.onnx has.

    Raises:
        ExportError: If torch.onnx cannot express the model; names the operator and the layer.
    """
    written = min(opset, WRITTEN)
    try:
        graph = _exported(model, call, written)
    except ExportError as error:
        if call.other.inputs is None:
            raise
        call.keep_size(
            str(error.__cause__ if isinstance(error.__cause__, FixedSizeError) else error)
        )
        graph = _exported(model, call, written)
    if call.closed(graph.graph):  # len(x) has to be a number, which closes the batch
        with _open_len():
            graph = _exported(model, call, written)
    if not call.alone:
        _rename(graph.graph, call)
    graph.graph.opset_imports[""] = opset
    graph.ir_version = ir_version or graph.ir_version
    return graph


def _exported(model: nn.Module, call: Call, opset: int) -> ir.Model:
    """Return what torch.onnx makes of a model."""
    entered: list[str] = []
    sizes = call.sizes
    whole = model if call.alone else Flat(model, call.inputs)
    shapes = sizes if call.alone or sizes is None else (sizes,)
    given = tuple(call.given.values())
    try:
        # torch prints the graph that it had got to, where it fails
        with quietly(), redirect_stderr(io.StringIO()), _noted(model, entered):
            if call.other.inputs is not None:
                # torch.onnx would keep open what the model's code made a number of, and forget it
                whole = torch.export.export(whole, given, dynamic_shapes=shapes, strict=False)
                refuse_windows_of_size(whole.graph)
            program = torch.onnx.export(
                whole,
                given,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(call.given),
                output_names=call.outputs,
                opset_version=opset,
                custom_translation_table=FUNCTIONS,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(NOT_EXPRESSED.text(error=_failure(error, entered))) from error
    assert program is not None
    return program.model


@contextmanager
def _open_len() -> Iterator[None]:
    """Let len(x) of a tensor be its first dimension, which may be open, while a model is traced."""
    number = builtins.len

    def length(given: Sized) -> int:
        return given.shape[0] if isinstance(given, Tensor) and given.ndim else number(given)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = number


def _rename(graph: ir.Graph, call: Call) -> None:
    """Give the ends of a graph their names, and constants those that they have in the model."""
    ends = {*call.given, *call.outputs}
    for value in [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]:
        name = str(value.name).removeprefix("model.")
        value.name = f"{name}.inner" if name in ends else name
    for name, value in zip(call.given, graph.inputs, strict=True):
        value.name = name
    for name, value in zip(call.outputs, graph.outputs, strict=True):
        value.name = f"output_{name}" if name in call.given else name


@contextmanager
def _noted(model: nn.Module, entered: list[str]) -> Iterator[None]:
    """Keep the names of the modules whose forward is running; left as they are by an error."""
    handles = []
    for name, module in model.named_modules():
        # functions, for torch.export copies some modules with what hooks hold, but no functions
        def enter(module: nn.Module, args: object, name: str = name) -> None:
            entered.append(name)

        def leave(module: nn.Module, args: object, output: object) -> None:
            entered.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _failure(error: BaseException, entered: list[str]) -> str:
    """Return what could not be expressed, where, and why."""
    place, operator, reason = (entered[-1] if entered else ""), "", error
    while True:
        node = _node_in(reason.__traceback__)
        if node is not None:
            operator = str(node.target)
            modules = list((node.meta.get("nn_module_stack") or {}).values())
            place = str(modules[-1][0]) if modules else place
        if reason.__cause__ is None:
            break
        reason = reason.__cause__
    place = place.removeprefix("model.")
    where = " in ".join(filter(None, (operator, place)))
    return ": ".join(filter(None, (where, first_line(reason))))


def first_line(reason: BaseException) -> str:
    """Return what an error says, in one line without colours.

    Where torch.onnx first says what to do with its own code, that is what follows it.
    """
    said = _COLOUR.sub("", str(reason))
    if isinstance(reason, GuardOnDataDependentSymNode) and _SIZE.search(said.partition("\n")[0]):
        return DATA_DEPENDENT
    said = said.partition(_SUMMARY)[2] or said
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return _CLASS.sub(r"\1: ", lines[0]).rstrip(".;") if lines else repr(reason)


def _node_in(trace: TracebackType | None) -> torch.fx.Node | None:
    """Return the node of a traced graph that was being translated when an error came up."""
    for frame, _ in walk_tb(trace):
        node = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            return node
    return None


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings and log lines below errors while a graph is traced."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
