"""YAML, read in one way: numbers as YAML 1.2 has them, and nothing larger than a recipe can be.

What PyYAML reads as YAML 1.1 and people do not mean is refused (010, which was 8) or text (1:30,
which was 90; dates). An alias counts as all that it stands for, before anything is built of it.
"""

import re
from collections.abc import Hashable
from typing import NamedTuple

import yaml

MOST_BYTES = 1_000_000
MOST_NODES = 10_000
DEEPEST = 20
SHOWN = 40  # characters of what is quoted in a message

_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = "tag:qtool:leading_zero"
_NUMERIC = "-+.0123456789"
# tag -> (how such a plain value looks, its first characters). As in YAML 1.2, and as in 1.1 where
# that means what people read: 1_000, 0b1, yes, no, on, off, << to merge.
_PLAIN: dict[str, tuple[str, str]] = {
    f"{_TAG}bool": (
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    ),
    f"{_TAG}null": (r"~|null|Null|NULL|", "~nN"),
    _AMBIGUOUS: (r"[-+]?0[0-9_]+", _NUMERIC),
    f"{_TAG}int": (r"[-+]?(0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+", _NUMERIC),
    f"{_TAG}float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+)([eE][-+]?[0-9]+)?|"
        r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _NUMERIC,
    ),
    f"{_TAG}merge": (r"<<", "<"),
}
_BASES = {"0b": 2, "0o": 8, "0x": 16}


class _Size(NamedTuple):
    """What a node is with all its aliases written out."""

    nodes: int
    characters: int
    depth: int


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, no tags, no key twice, and limits while nodes are read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._named: dict[str, _Size] = {}  # by anchor
        self._nodes = self._characters = 0  # so far, aliases written out
        self._depths: list[int] = []  # of what is below each node that is not yet complete

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node, where it and all before it are small enough."""
        event = self.peek_event()
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            size = self._named.get(event.anchor)
            if size is None:
                raise _problem(mark, f"*{event.anchor[:SHOWN]} stands inside what it names")
            self._count(mark, size)
        else:
            if event.tag is not None:
                written = event.tag.replace(_TAG, "!!")[:SHOWN]
                raise _problem(mark, f"the tag {written}; write the plain value")
            before, characters = self._nodes, self._characters
            self._count(mark, _Size(1, len(getattr(event, "value", "")), 1))
            self._depths.append(0)
            node = super().compose_node(parent, index)
            depth = 1 + self._depths.pop()
            size = _Size(self._nodes - before, self._characters - characters, depth)
            if event.anchor is not None:
                self._named[event.anchor] = size
        if self._depths:
            self._depths[-1] = max(self._depths[-1], size.depth)
        return node

    def _count(self, mark: yaml.Mark, size: _Size) -> None:
        self._nodes += size.nodes
        self._characters += size.characters
        for number, most, what in (
            (self._nodes, MOST_NODES, "values"),
            (self._characters, MOST_BYTES, "characters"),
        ):
            if number > most:
                raise _problem(mark, f"more than {most:,} {what}, with all aliases written out")
        if len(self._depths) + size.depth > DEEPEST:
            raise _problem(mark, f"nested more than {DEEPEST} deep")

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002 as PyYAML calls it
    ) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    what = f"the key {key.value[:SHOWN]} is written twice"
                    raise yaml.YAMLError(f"line {line}: {what}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """Return a whole number, decimal unless it says otherwise."""
        text = node.value.replace("_", "")
        try:
            return int(text, _BASES.get(text[:2], 10))
        except ValueError:  # of thousands of digits, which Python does not read
            raise _problem(node.start_mark, f"a number of {len(text):,} digits") from None

    def leading_zero(self, node: yaml.ScalarNode) -> object:
        """Refuse a number that readers of YAML 1.1 and 1.2 take for different ones."""
        written = node.value[:SHOWN]
        sign = "-" if written.startswith("-") else ""
        meant = written.lstrip("+-").replace("_", "").lstrip("0") or "0"
        raise _problem(
            node.start_mark,
            f"{written} begins with 0, which some readers of YAML take for a number to the base 8; "
            f'write {sign}{meant}, or "{written}" in quotes for text',
        )


class _Dumper(yaml.SafeDumper):
    """Quotes texts that the loader, or a reader of YAML 1.1, would take for something else."""


_Loader.yaml_implicit_resolvers = {}
for _tag, (_look, _first) in _PLAIN.items():
    _regexp = re.compile(rf"(?:{_look})\Z")
    _characters = [*_first, *([""] if _regexp.match("") else [])]
    _Loader.add_implicit_resolver(_tag, _regexp, _characters)
    _Dumper.add_implicit_resolver(_tag, _regexp, _characters)
_Loader.add_constructor(f"{_TAG}int", _Loader.whole_number)
_Loader.add_constructor(_AMBIGUOUS, _Loader.leading_zero)


def _problem(mark: yaml.Mark, what: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {mark.line + 1}, column {mark.column + 1}: {what}")


def parse_yaml(text: str) -> object:
    """Return the data of a YAML text of one document.

    Raises:
        yaml.YAMLError: If it is not YAML, a key is written twice, or it is larger than a recipe
            can be; says where in one line.
    """
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"more than {MOST_BYTES:,} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = f"{place}{error.problem or error.context}"[:200]
        raise yaml.YAMLError(f"{why}{_advice_for(error)}") from error


def _advice_for(error: yaml.MarkedYAMLError) -> str:
    """Return what to write instead, where YAML means something else by a text or its place."""
    problem, context = str(error.problem), str(error.context)
    if "alias" in problem + context or "anchor" in context:
        return "; put a text that begins with * or & in quotes"
    if "'\\t'" in problem:
        return "; indent with spaces, not with tabs"
    if "cannot start any token" in problem:
        return "; put the text that begins with it in quotes"
    if "mapping values are not allowed" in problem:
        return "; put a text with a colon in it in quotes"
    if "block end" in problem:
        return "; this line is indented otherwise than those before it that it belongs to"
    if "stream end" in problem:
        return "; the text ends before a bracket or a quote is closed"
    if "flow mapping" in context or "flow sequence" in context:
        mark = error.context_mark
        opened = f" that opens in line {mark.line + 1}, column {mark.column + 1}," if mark else ""
        return f"; the bracket{opened} is not closed, or a comma is missing"
    return ""


def written_yaml(data: object) -> str:
    """Return plain data as YAML, which `parse_yaml` reads back as the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
