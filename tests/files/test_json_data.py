"""JSON is read in one way: nothing that is no JSON, and nothing larger than can be believed."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from qtool.errors import InputError
from qtool.files.json_data import parse_json, read_json, read_json_lines, typed_json

HALF = "half of a character"
REFUSED = {
    "NaN": ('{"a": NaN}', "NaN is no number of JSON"),
    "infinite": ("[-Infinity]", "-Infinity is no number of JSON"),
    "too large a number": ("[1e999]", "1e999 is too large a number"),
    "a key twice": ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is written twice"),
    "half of a character": (r'["\ud800"]', HALF),
    "half of a character in capitals": (r'{"a": ["\uD8FF"]}', HALF),
    "half of a character in a key": (r'[{"\udc00": 1}]', HALF),
    "65 deep": ("[" * 65 + "1" + "]" * 65, "sections more than 64 deep"),
    "a million deep": ("[" * 10**6, "sections more than 64 deep"),
    "many values": ("[" + "0," * 2_000_000 + "0]", "more than 2,000,000 values"),
    "many empty lists": ("[" + "[],[]," * 700_000 + "0]", "more than 2,000,000 values"),
    "long": (" " * (64 * 2**20 + 1), "more than 67,108,864 characters"),
    "digits": ("1" * 5000, "Exceeds the limit"),
    "cut off": ('{"a": ', "Expecting value: line 1 column 7"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_json_or_too_large_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_all_else_is_read_as_python_reads_it() -> None:
    text = r'{"a": [1, -2.5e-3, true, null, "\ud83d\ude00 \\ud800"], "": {}, "64": ' + "[" * 63
    text += "]" * 63 + "}"
    assert parse_json(text) == json.loads(text)


def test_types_are_the_types_that_are_asked_for() -> None:
    pairs = TypeAdapter(dict[str, tuple[int, float]])
    assert typed_json(pairs, '{"a": [1, 2]}') == {"a": (1, 2.0)}
    for wrong in ('{"a": [1, "2"]}', '{"a": [true, 2]}', '{"a": [1.0, 2]}', '{"a": [1]}'):
        with pytest.raises(ValueError, match="1 validation error"):
            typed_json(pairs, wrong)


def test_a_file_is_named_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]
    for text, why in (('{"a": 1}\n{"b": NaN}\n', r"x.json, line 2: cannot be read as JSON: NaN"),):
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            read_json_lines(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"x.json: holds no JSON object"):
        read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"x.json: cannot be read as JSON: 'utf-8' codec"):
        read_json(path)


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(InputError, match="zero: cannot be read as JSON: more than 67,108,864"):
        read_json(Path("/dev/zero"))
