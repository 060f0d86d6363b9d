"""What reads files of anyone stands in one place for each kind, where its limits are."""

import re
from pathlib import Path

import pytest

QTOOL = Path(__file__).parents[2] / "qtool"
# how a kind is read by its library -> the only files that may do so
READERS = {
    r"\bjson\.loads?\(": [
        "comparison/execution/slots.py",  # what a worker of this comparison said
        "export/targets/onnxruntime.py",  # a profile
        "files/json_data.py",
        "known.py",  # of the package itself
        "recipe/early.py",  # likewise
        "runs/kept/answers.py",  # as world/group
        "world/group.py",  # what another process of this training said
    ],
    r"\byaml\.(load|safe_load|unsafe_load|full_load)\(": ["files/yaml_data.py"],
    r"\btorch\.load\(": ["tensor_files.py"],
    r"\b(load_file|safe_open)\(": ["tensor_files.py"],
    r"\bnp\.(load|fromfile|memmap)\(": [
        "data/image_files.py",  # the bytes of an image, for torchvision to decode
        "files/npz.py",
    ],
    r"\bzipfile\.ZipFile\(": ["files/archives.py", "files/checksums.py"],
    r"\bImage\.open\(": ["images/files.py"],
    r"\bonnx\.load\w*\(|\bParseFromString\(": [
        "export/reading.py",  # of anyone
        *(f"export/targets/{name}.py" for name in ("onnxruntime", "onnxruntime_static")),
        *(f"export/targets/{name}.py" for name in ("openvino", "qonnx")),  # what is let through
        "export/writing/saved.py",  # what qtool has just written
    ],
    r"\bpickle\.loads?\(|\btarfile\.|\bshelve\.": [
        *(f"comparison/execution/{name}.py" for name in ("cluster", "worker")),  # tasks of its own
    ],
    r"_validate_json\(|\.validate_json\(": ["files/json_data.py"],
}


@pytest.mark.parametrize("call", READERS)
def test_a_kind_of_file_is_read_in_one_place(call: str) -> None:
    found = [
        str(path.relative_to(QTOOL))
        for path in sorted(QTOOL.rglob("*.py"))
        if re.search(call, path.read_text())
    ]
    assert found == READERS[call]
