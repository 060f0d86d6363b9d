"""Operators that unpack codes at their true width; packing says how they lie in bytes.

Every table, and every shape, stands in a graph once.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.export.targets.target import Array
from qtool.export.writing.insert import insert_constant, insert_node
from qtool.export.writing.packing import Form, Packed


class SharedConstants:
    """Constants of one graph that several of its nodes read; the same numbers stand there once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[str, str, bytes], ir.Value] = {}

    def get(self, name: str, array: Array) -> ir.Value:
        """Return a constant; `name` and a number are what it is called where it is a new one."""
        key = (name, f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self._known:
            same = sum(known[0] == name for known in self._known)
            called = f"{name}.{same}" if same else name
            self._known[key] = insert_constant(self._graph, called, array)
        return self._known[key]


class Unpacker:
    """Puts packed codes and what unpacks them into a graph.

    Attributes:
        table_bytes: what the tables take on disk, which all weights share.
    """

    def __init__(self, graph: ir.Graph, constants: SharedConstants) -> None:
        self._graph, self._constants = graph, constants
        self._tables: dict[str, int] = {}

    @property
    def table_bytes(self) -> int:
        """Return what the tables take on disk."""
        return sum(self._tables.values())

    def unpack(self, packed: Packed, name: str, before: ir.Node) -> ir.Value:
        """Return the codes, int8 or uint8 of their shape, under `name`."""
        given = insert_constant(self._graph, f"{name}.packed", packed.packed)
        index = insert_node("Cast", [given], f"{name}.index", before, to=ir.DataType.INT32)
        if packed.form.extras:
            index = self._with_extras(index, packed.form, name, before)
        table = self._constants.get(f"table.{packed.form.name}", packed.table)
        self._tables[str(table.name)] = packed.table.nbytes
        values = insert_node("Gather", [table, index], f"{name}.rows", before, axis=0)
        if not packed.is_full:  # of the last group
            line = self._numbers("line", [-1])
            values = insert_node("Reshape", [values, line], f"{name}.line", before)
            ends = [self._numbers("first", [0]), self._numbers("end", [packed.count])]
            values = insert_node("Slice", [values, *ends], f"{name}.cut", before)
        shape = self._numbers("shape", packed.shape)
        return insert_node("Reshape", [values, shape], name, before)

    def _with_extras(self, index: ir.Value, form: Form, name: str, before: ir.Node) -> ir.Value:
        """Put the slots that a group's bytes share behind the slots of its own, [groups, slots]."""
        own = self._numbers("slot", form.values, np.int32)
        rest = insert_node("Div", [index, own], f"{name}.rest", before)
        digits = self._numbers("digits", form.tops ** np.arange(form.bytes)[:, None], np.int32)
        extra = insert_node("MatMul", [rest, digits], f"{name}.extra", before)
        if form.extras > 1:
            places = self._numbers("places", form.values ** np.arange(form.extras), np.int32)
            extra = insert_node("Div", [extra, places], f"{name}.place", before)
            extra = insert_node("Mod", [extra, own], f"{name}.slot", before)
        return insert_node("Concat", [index, extra], f"{name}.slots", before, axis=1)

    def _numbers(
        self, name: str, numbers: Array | Sequence[int] | int, kind: type = np.int64
    ) -> ir.Value:
        return self._constants.get(f"unpack.{name}", np.asarray(numbers, kind))
