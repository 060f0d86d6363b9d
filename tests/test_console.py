"""What is shown is text: no markup, and nothing that a terminal obeys."""

import io

import pytest
from rich.console import Console

from qtool import console
from qtool.console import printable, say, show, table, warn
from qtool.errors import InputError
from tests.kit import shell

ESCAPE = "\x1b]0;title\x07\x1b[2J"
LEFT = "]0;title[2J"  # what is left of it
OBEYED = [
    *map(chr, (*range(9), *range(11, 32), *range(0x7F, 0xA0))),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ud800\udfff",
]


def test_what_a_terminal_obeys_is_left_out() -> None:
    assert [hex(ord(one)) for one in OBEYED if printable(f"a{one}b") != "ab"] == []


def test_letters_of_any_script_lines_and_tabs_stay() -> None:
    text = "über\tΔ 数字\n  ✓ \U0001f600 ~\xa0"
    assert printable(text) == text


def shown(monkeypatch: pytest.MonkeyPatch, title: str, column: str, cell: str) -> str:
    """Return what a terminal is sent of a table, 200 columns wide, in black and white."""
    out = io.StringIO()
    monkeypatch.setattr(console, "SCREEN", Console(file=out, width=200, color_system=None))
    show(table(title, [column, "x"], [(cell, 1)]))
    return out.getvalue()


@pytest.mark.parametrize("text", ["[/x]", "[red]name[/red]", ":smiley:", "[link=http://a]b[/link]"])
def test_markup_in_titles_headings_and_cells_is_text(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(3):
        words = ["title", "column", "cell" * 10]
        words[place] = text
        out = shown(monkeypatch, *words)
        assert [word for word in words if word not in out] == []


@pytest.mark.parametrize("place", range(3))
def test_tables_send_no_control_characters(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["title", "column", "cell"]
    words[place] = f"a{ESCAPE}b"
    out = shown(monkeypatch, *words)
    assert f"a{LEFT}b" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("speak", [say, warn])
def test_messages_send_no_control_characters_and_no_markup(
    speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(console, "SCREEN", Console(file=out, width=200, color_system=None))
    speak(f"[/x] :smiley: {ESCAPE}")
    assert f"[/x] :smiley: {LEFT}\n" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_errors_send_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, **options: object) -> None:
        raise InputError(f"a{ESCAPE}b [/x]\n  more")

    monkeypatch.setattr("qtool.pipeline.inspect", fail)
    code, _, err = shell("inspect", "r.yaml")
    assert code == 2
    assert err == f"error: a{LEFT}b [/x]\n  more\n"
