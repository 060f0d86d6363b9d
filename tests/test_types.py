"""What the types of the package leave open is counted, and may only become less.

A count above its ceiling fails; so does one below it, for then the ceiling is to be lowered.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "qtool").rglob("*.py"))
}
LONGEST = 320  # lines of a module
CEILINGS = {
    "dict[str, Any]": 8,
    "uses of Any outside of imports": 11,
    "names for what is open, such as Row = dict[str, Any]": 2,
    f"modules of more than {LONGEST} lines": 0,
}
SWITCH = re.compile(r"#\s*(?:noqa|pyright: ?ignore|type: ?ignore)", re.IGNORECASE)
EXPLAINED = re.compile(r"(?:noqa: ?[A-Z]+\d+(?:, ?[A-Z]+\d+)*|pyright: ?ignore\[[^\]]+\])(.*)")


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes, those of annotations in quotes included."""
    for node in ast.walk(tree):
        yield node
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield from nodes_of(ast.parse(part.value, mode="eval"))


def is_any(node: ast.AST) -> bool:
    named = isinstance(node, ast.Name) and node.id == "Any"
    return named or (isinstance(node, ast.Attribute) and node.attr == "Any")


def is_open_dict(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return isinstance(key, ast.Name) and key.id == "str" and is_any(value)
    return False


def names_what_is_open(node: ast.AST) -> bool:
    """Tell whether a statement gives Any, or a type that holds dict[str, Any], another name."""
    if isinstance(node, ast.ImportFrom):
        return any(item.name == "Any" and item.asname for item in node.names)
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    return is_any(node.value) or any(is_open_dict(part) for part in ast.walk(node.value))


def counted(texts: dict[str, str]) -> dict[str, int]:
    trees = [ast.parse(text) for text in texts.values()]
    nodes = [node for tree in trees for node in nodes_of(tree)]
    counts = (
        sum(is_open_dict(node) for node in nodes),
        sum(is_any(node) for node in nodes),
        sum(names_what_is_open(node) for tree in trees for node in tree.body),
        sum(len(text.splitlines()) > LONGEST for text in texts.values()),
    )
    return dict(zip(CEILINGS, counts, strict=True))


def unexplained(name: str, text: str) -> list[str]:
    """Return where a check is switched off with no reason, behind it or in the line above."""
    lines, found = text.splitlines(), []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or not SWITCH.search(token.string):
            continue
        number = token.start[0]
        named = EXPLAINED.search(token.string)
        above = lines[number - 2].strip() if number > 1 else ""
        reason = named and (len(named[1].split()) > 1 or above.startswith("# "))
        if not reason:
            found.append(f"{name}:{number}: {token.string}")
    return found


@pytest.fixture(scope="module")
def now() -> dict[str, int]:
    return counted(TEXTS)


@pytest.mark.parametrize("what", CEILINGS)
def test_what_is_open_becomes_less(now: dict[str, int], what: str) -> None:
    found, ceiling = now[what], CEILINGS[what]
    assert found <= ceiling, f"{found} {what}: there were {ceiling}; give what was added a type"
    assert found == ceiling, f"{found} {what}: lower the ceiling of {ceiling} in {__file__}"


def test_a_check_is_switched_off_for_a_reason_that_stands_beside_it() -> None:
    files = {path: path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))}
    texts = TEXTS | {str(path.relative_to(ROOT)): text for path, text in files.items()}
    assert [line for name, text in texts.items() for line in unexplained(name, text)] == []


def test_all_that_is_open_is_counted() -> None:
    open_types = """
from typing import Any, Any as Free
Row = dict[str, Any]
Rows: TypeAlias = list[dict[str, Any]]
def rows(text: str, first: "Any") -> "dict[str, Any]":
    found: list[Any] = []
    return typing.Any
"""
    long = "\n" * (LONGEST + 1)
    assert list(counted({"a": open_types, "b": long}).values()) == [3, 6, 3, 1]


@pytest.mark.parametrize(
    ("line", "explained"),
    [
        ("x = 1  # pyright: ignore[reportX]", False),
        ("x = 1  # noqa: E501", False),
        ("x = 1  # noqa  its reason has no rule", False),
        ("x = 1  # type: ignore[x]  is never allowed", False),
        ("x = 1  # noqa: E501  an address has no place to break", True),
        ("x = 1  # noqa: FBT001, FBT002  torch calls it so", True),
        ("# torch says so nowhere\nx = 1  # pyright: ignore[reportX, reportY]", True),
        ('x = "# noqa"', True),
    ],
)
def test_a_reason_is_told_from_none(line: str, explained: bool) -> None:
    assert (unexplained("a", f"{line}\n") == []) == explained
