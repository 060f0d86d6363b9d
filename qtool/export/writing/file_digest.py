"""A digest of all that an ONNX file holds, kept in it, and which of its parts are others.

Metadata `qtool.sha256` holds SHA-256 over the parts of the file, whatever their order: nodes,
tensors, inputs and outputs, their fixed sizes, annotations, metadata of qtool's own and versions;
and two bytes of each part's digest, by which a part that changed is told. Shapes that tools infer,
texts and metadata of others count for nothing, nor whether a tensor stands in the file or beside.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from qtool.export.writing.wire import entry, fields, message, text_of, varint
from qtool.files.json_data import typed_json
from qtool.files.reading import read_bounded
from qtool.reports.result import Result

KEY = "qtool.sha256"
OWN, LAYER = "qtool", "qtool.layer."  # what keys of qtool's metadata begin with
SHORT = 2  # bytes of a part's digest
NAMED = 3  # parts in a message
Kind = Literal["node", "tensor", "annotation", "metadata", "size", "rest"]
KINDS: tuple[Kind, ...] = ("node", "tensor", "annotation", "metadata", "size", "rest")

# Numbers of fields, from onnx.proto, which never change.
GRAPH, METADATA, MODEL_DOC = 7, 14, 6
NODE, TENSOR, SPARSE, INPUT, OUTPUT, ANNOTATION = 1, 5, 15, 11, 12, 14
OF_NO_MEANING = (2, 10, 13, 16)  # of a graph: its name, text, shapes that tools infer, metadata
NODE_OUTPUT, NODE_TEXTS = 2, (6, 9)
VALUE_TYPE, TENSOR_KIND, SHAPE, DIMENSION, FIXED = 2, 1, 2, 1, 1
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_TEXTS = 1, 2, 8, (12, 16)
RAW, EXTERNAL, LOCATION = 9, 13, 14
CHUNK = 2**20
MOST_BYTES = 2**31 - 1  # that one message of protobuf can have
SHARED = 4  # tensors may have the same bytes of a file beside; so often is each of them read


class Part(NamedTuple):
    """A part of a file: what it is, what it is called, and SHA-256 of what it says."""

    kind: Kind
    name: str
    sha256: bytes


class Kept(Result):
    """What a file says that it was written as."""

    sha256: str
    parts: dict[Kind, str]
    """Kind -> base64 of two bytes for each part of that kind, sorted."""


@dataclass(frozen=True)
class State:
    """How a file stands to what was written.

    Attributes:
        kind: `unknown` where the file says nothing of it; `as_written`; `damaged`; `rewritten`, by
            a tool that made other nodes or tensors of it.
        why: what is damaged, else "".
        layers: its metadata say of layers what they are.
    """

    kind: Literal["unknown", "as_written", "damaged", "rewritten"]
    why: str = ""
    layers: bool = False


Parts = dict[Kind, Counter[bytes]]

_KEPT = TypeAdapter(Kept)


def seal(path: Path) -> None:
    """Put the digest of a file into it, in place of one that is there.

    Args:
        path: of a file without a reader yet: it is written twice.
    """
    data = path.read_bytes()
    parts = list(_parts(data, _Beside(path.parent)))
    said = json.dumps(_kept(parts).to_json(), separators=(",", ":"))
    with path.open("wb") as file:
        for number, field in fields(data):
            if number != METADATA or entry(field.payload)[0] != KEY:
                file.write(field.whole)
        file.write(message(METADATA, message(1, KEY.encode()) + message(2, said.encode())))


def state_of(path: Path) -> State:
    """Return how a file stands to what was written, by the digest in it.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger than protobuf allows.
    """
    return state_of_bytes(read_bounded(path, MOST_BYTES), path.parent)


def state_of_bytes(model: bytes, folder: Path | None) -> State:
    """Return the same of a model; `folder` holds the tensors beside it, if it has any there."""
    try:
        entries = [entry(f.payload) for number, f in fields(model) if number == METADATA]
        said = [value for key, value in entries if key == KEY]
        layers = any(key.startswith(LAYER) for key, _ in entries)
        if not said:
            return State("unknown", layers=layers)
        parts = list(_parts(model, _Beside(folder)))
    except ValueError:  # no protobuf, or not of a model: who opens it says so
        return State("unknown")
    try:
        kept = typed_json(_KEPT, said[-1])
        before: Parts = {kind: _shorts(kept.parts.get(kind, "")) for kind in KINDS}
    except (ValidationError, ValueError):
        return State("damaged", f"its metadata {KEY}", layers)
    if len(said) == 1 and _whole(parts) == kept.sha256:
        return State("as_written", layers=layers)
    why = _changed(parts, before)
    return State("rewritten" if why is None else "damaged", why or "", layers)


def _changed(parts: list[Part], before: Parts) -> str | None:
    """Return what is damaged; None where a tool changed the number of parts, or most of them."""
    now: Parts = {kind: Counter() for kind in KINDS}
    changed: list[Part] = []
    for part in parts:
        short = part.sha256[:SHORT]
        now[part.kind][short] += 1
        if now[part.kind][short] > before[part.kind][short]:
            changed.append(part)
    computing: tuple[Kind, ...] = ("node", "tensor")
    same = all(now[kind].total() == before[kind].total() for kind in computing)
    others = sum(part.kind in computing for part in changed)
    if not same or 2 * others > sum(before[kind].total() for kind in computing):
        return None
    lost = {kind: before[kind] - now[kind] for kind in KINDS}
    if before["annotation"] and not now["annotation"]:  # many tools drop all of them
        del lost["annotation"], lost["rest"]
    if all(part.kind != "size" for part in changed):
        del lost["size"]  # sizes that are open now
    changed = [part for part in changed if lost.get(part.kind)]  # what is new does no harm
    if not any(lost.values()) and len(parts) != sum(own.total() for own in before.values()):
        return None
    named = [part.name if part.kind == "rest" else f"{part.kind} {part.name}" for part in changed]
    told = {part.kind for part in changed}
    named += [f"a {kind} that is missing" for kind in lost if lost[kind] and kind not in told]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (", ".join(named[:NAMED]) + more) or f"its metadata {KEY}"


def _kept(parts: list[Part]) -> Kept:
    shorts: dict[Kind, list[bytes]] = {kind: [] for kind in KINDS}
    for part in parts:
        shorts[part.kind].append(part.sha256[:SHORT])
    said: dict[Kind, str] = {
        kind: base64.b64encode(b"".join(sorted(own))).decode()
        for kind, own in shorts.items()
        if own
    }
    return Kept(sha256=_whole(parts), parts=said)


def _whole(parts: list[Part]) -> str:
    """Return the digest of all parts, in any order."""
    lines = sorted(f"{part.kind} {part.sha256.hex()}\n" for part in parts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shorts(text: str) -> Counter[bytes]:
    held = base64.b64decode(text, validate=True)
    return Counter(held[start : start + SHORT] for start in range(0, len(held), SHORT))


def _parts(model: bytes, files: "_Beside") -> Iterator[Part]:
    """Yield the parts of a model.

    Raises:
        ValueError: If it is no protobuf.
    """
    for number, field in fields(model):
        if number == GRAPH:
            yield from _graph_parts(field.payload, files)
        elif number == METADATA:
            key, _ = entry(field.payload)
            if key.startswith(OWN) and key != KEY:
                yield Part("metadata", key, hashlib.sha256(field.whole).digest())
        elif number != MODEL_DOC:
            yield Part("rest", f"field {number} of the model", hashlib.sha256(field.whole).digest())


def _graph_parts(graph: memoryview, files: "_Beside") -> Iterator[Part]:
    for number, field in fields(graph):
        if number == NODE:
            kept = [(n, f) for n, f in fields(field.payload) if n not in NODE_TEXTS]
            made = hashlib.sha256()
            for _, inner in kept:
                made.update(inner.whole)
            name = next((text_of(f.payload) for n, f in kept if n == NODE_OUTPUT), "")
            yield Part("node", name, made.digest())
        elif number == TENSOR:
            yield _tensor_part(field.payload, files)
        elif number == SPARSE:
            yield Part("tensor", "(sparse)", hashlib.sha256(field.whole).digest())
        elif number == ANNOTATION:
            name = next((text_of(f.payload) for n, f in fields(field.payload) if n == 1), "")
            yield Part("annotation", name, hashlib.sha256(field.whole).digest())
        elif number in (INPUT, OUTPUT):
            what = "input" if number == INPUT else "output"
            name = next((text_of(f.payload) for n, f in fields(field.payload) if n == 1), "")
            said = f"{what} {name} {_type_of(field.payload)}"
            yield Part("rest", f"{what} {name}", hashlib.sha256(said.encode()).digest())
            for axis, size in enumerate(_sizes_of(field.payload)):
                if size is not None:
                    said = f"{axis} of {what} {name} {size}"
                    yield Part("size", said, hashlib.sha256(said.encode()).digest())
        elif number not in OF_NO_MEANING:
            yield Part("rest", f"field {number} of it", hashlib.sha256(field.whole).digest())


def _type_of(value: memoryview) -> bytes:
    """Return what an input or output is made of, without sizes."""
    for number, field in fields(value):
        if number == VALUE_TYPE:
            for kind, inner in fields(field.payload):
                held = [f.whole for n, f in fields(inner.payload) if n != SHAPE]
                if kind == TENSOR_KIND:
                    return b"".join(held)
            return bytes(field.payload)
    return b""


def _sizes_of(value: memoryview) -> Iterator[int | None]:
    """Yield the sizes of an input or output; None for one that is open."""
    inside = [value]
    for wanted in (VALUE_TYPE, TENSOR_KIND, SHAPE, DIMENSION):
        inside = [f.payload for part in inside for n, f in fields(part) if n == wanted]
    for size in inside:
        yield next((varint(f.payload, 0)[0] for n, f in fields(size) if n == FIXED), None)


def _tensor_part(tensor: memoryview, files: "_Beside") -> Part:
    """Return a tensor as a part: its name, type, sizes and numbers, wherever those stand."""
    head, numbers, name = hashlib.sha256(), hashlib.sha256(), ""
    beside: dict[str, str] = {}
    for number, field in fields(tensor):
        if number == EXTERNAL:
            key, value = entry(field.payload)
            beside[key] = value
        elif number == TENSOR_NAME:
            name = text_of(field.payload)
            head.update(field.whole)
        elif number == RAW:
            numbers.update(field.payload)
        elif number in (TENSOR_DIMS, TENSOR_TYPE):
            head.update(field.whole)
        elif number not in (LOCATION, *TENSOR_TEXTS):
            numbers.update(field.whole)
    for chunk in files.numbers(beside) if beside else ():
        numbers.update(chunk)
    head.update(numbers.digest())
    return Part("tensor", name, head.digest())


class _Beside:
    """The files beside a model: only plain ones, and no byte of them is read without end."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._left: dict[str, int] = {}

    def numbers(self, said: Mapping[str, str]) -> Iterator[bytes]:
        """Yield the numbers of a tensor that stand in a file beside, as far as it has them."""
        name = said.get("location", "")
        try:
            offset, length = int(said.get("offset", "0")), int(said.get("length", "-1"))
            if self._folder is None or name != Path(name).name or offset < 0:  # never outside
                return
            path = self._folder / name
            if not path.is_file():  # a device has no end
                return
            held = path.stat().st_size
            left = length if length >= 0 else held - offset
            with path.open("rb") as file:
                file.seek(offset)
                while left > 0 and (chunk := file.read(min(left, CHUNK))):
                    left -= len(chunk)
                    self._left[name] = self._left.get(name, SHARED * held) - len(chunk)
                    if self._left[name] < 0:  # who opens the model says so
                        return
                    yield chunk
        except (OSError, ValueError):  # who opens the model says so
            return
