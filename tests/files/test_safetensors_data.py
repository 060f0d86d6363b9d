"""What a safetensors file says of itself is held against the file before it is believed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qtool.files.safetensors_data import read_header


def written(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    size = (len(text) if length is None else length).to_bytes(8, "little")
    path.write_bytes(size + text + data)
    return path


def test_a_header_says_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(12.0).reshape(3, 4),
        "empty": torch.zeros(0, 7),
        "codes": torch.arange(5, dtype=torch.int8),
        "one": torch.tensor(3.0, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"k": "v"})
    found = read_header(tmp_path / "x.safetensors")
    assert found.metadata == {"k": "v"}
    assert {name: said.shape for name, said in found.tensors.items()} == {
        name: list(tensor.shape) for name, tensor in tensors.items()
    }
    raw = (tmp_path / "x.safetensors").read_bytes()[found.start :]
    begins, ends = found.tensors["a"].data_offsets
    assert raw[begins:ends] == tensors["a"].numpy().tobytes()


def tensor(shape: list[int], begins: int, ends: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begins, ends]}


WRONG = {
    "a shape larger than its bytes": ({"a": tensor([10**12], 0, 4)}, "are not where and as many"),
    "bytes that are not there": ({"a": tensor([8], 0, 8)}, "its tensors take 8 bytes"),
    "bytes that nobody reads": ({"a": tensor([2], 0, 2)}, "its tensors take 2 bytes"),
    "bytes of two tensors": ({"a": tensor([4], 0, 4), "b": tensor([4], 0, 4)}, "the bytes of b"),
    "a gap": ({"a": tensor([1], 0, 1), "b": tensor([2], 2, 4)}, "the bytes of b"),
    "a negative size": ({"a": tensor([-4, -1], 0, 4)}, "greater than or equal to 0"),
    "an unknown type": ({"a": tensor([4], 0, 4, "X8")}, "a is of an unknown type, X8"),
    "a type that is no text": ({"a": tensor([4], 0, 4) | {"dtype": 1}}, "valid string"),
    "metadata that is no text": ({"__metadata__": {"a": 1}, "a": tensor([4], 0, 4)}, "string"),
    "no object": ([], "its header is no JSON object"),
}


@pytest.mark.parametrize(("header", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_header_that_its_file_contradicts_is_refused(
    header: object, why: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "x.safetensors", header, b"abcd")
    with pytest.raises(ValueError, match=why):
        read_header(path)
    with pytest.raises((SafetensorError, ValueError)):
        load_file(path)


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {}, length=2**62)
    with pytest.raises(ValueError, match="it has 10 bytes, and says that its header has 4,611,"):
        read_header(path)
    path.write_bytes(b"abc")
    with pytest.raises(ValueError, match="it has 3 bytes"):
        read_header(path)
