"""What is shown is text: no markup, and nothing that a terminal obeys."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from qtool import console
from qtool.console import printable, say, show, table, warn, wrapped
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


def test_errors_send_no_control_characters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(source: object, **options: object) -> None:
        raise InputError(f"a{ESCAPE}b [/x]\n  more")

    monkeypatch.setattr("qtool.uses.inspect", fail)
    code, _, err = shell("inspect", str(tmp_path))
    assert code == 2
    assert err == f"error: a{LEFT}b [/x]\n  more\n"


WORDS = "may saturate by their widths: layer1.0.conv1, layer1.0.conv2 (against it: saturation)"


@pytest.mark.parametrize("width", [10, 40, 80, 140])
def test_lines_on_a_terminal_break_between_words(width: int) -> None:
    lines = wrapped(f"note: {WORDS}\n  more: {WORDS}", width).splitlines()

    assert " ".join(lines).split() == f"note: {WORDS} more: {WORDS}".split()
    assert [line for line in lines if len(line) > width and " " in line.strip()] == []
    assert lines[0].startswith("note:")
    assert {len(line) - len(line.lstrip()) for line in lines} <= {0, 2, 4}


def test_letters_that_are_two_columns_wide_count_twice() -> None:
    assert wrapped("数字数字 数字数字", 12) == "数字数字\n  数字数字"


def test_a_command_at_the_end_of_a_line_stays_one_that_can_be_copied() -> None:
    command = "qtool train runs/a/recipe.yaml --run-dir runs/a --resume --run-code"
    text = wrapped(f"stopped; go on with: {command}", 40)

    before, *lines = text.split("\n")
    assert before == "stopped; go on with:"
    assert max(map(len, lines)) <= 40
    assert "\n".join(lines).replace("\\\n", " ").split() == command.split()


ROWS = [
    ["layer1.0:relu0", "conv1 + bn1 + relu", "layer1.0.conv1, layer1.0:add0", "8-bit unsigned"],
    ["layer1.0:batch_norm1", "conv2 + bn2", "add0", "8-bit full"],
    ["数字", "", "a\nb", "1"],
]
COLUMNS = ["site", "made by", "read by", "#grid"]


@pytest.mark.parametrize("named", [True, False])
def test_tables_break_no_word_on_any_screen(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = COLUMNS if named else ["", "", "", "#"]
    for width in range(8, 140):
        out = io.StringIO()
        screen = Console(file=out, width=width, color_system=None, soft_wrap=True)
        monkeypatch.setattr(console, "SCREEN", screen)
        show(table("values of a network", columns, ROWS))
        said = out.getvalue()
        words = re.findall(r"[^\s│┃┏┓└┘─━┡┩┴┬┌┐╇┳]+", said)
        assert {word for row in ROWS for cell in row for word in cell.split()} <= {
            *words,
            *(word.removesuffix(":") for word in words),  # of a list, on a narrow screen
        }
        longest = max(map(len, " ".join(" ".join(row) for row in ROWS).split()))
        if width > longest + 8:
            assert max(len(line) for line in said.splitlines()[1:]) <= width


def test_a_share_in_a_table_keeps_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[f"estimator_{n}", f"1{n}.00 %", "98.78, 98.75, 98.49", "+0.1"] for n in range(3)]
    for width in range(8, 80):
        out = io.StringIO()
        screen = Console(file=out, width=width, color_system=None, soft_wrap=True)
        monkeypatch.setattr(console, "SCREEN", screen)
        show(table("accuracy", ["arm", "#mean", "each seed", "#gap"], rows))
        if "│" in out.getvalue():  # else a list
            assert [f"1{n}.00 %" in out.getvalue() for n in range(3)] == [True] * 3


# Speaks in each way there is; its standard error is a terminal of 80 columns.
SPEAKER = """
from contextlib import suppress
from qtool.cli import main
from qtool.cli.options import tell
from qtool.console import say, show, table, warn
say("a note")
warn("a warning")
show(table("title", ["a", "#b"], [("x", 1)]))
show(table("title", ["a", "#b"], [("x", 1)]), on_stdout=True)
tell("error: none")
for wrong in (["train", "-h"], ["train"]):
    with suppress(SystemExit):
        main(wrong)
"""


def sent_to_a_terminal(*command: str, **environment: str) -> str:
    """Return what a program sends to a terminal that is both its output and its errors."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=kept | {"TERM": "xterm-256color"} | environment,
    ):
        os.close(slave)
        sent = b""
        while True:
            try:
                more = os.read(master, 65536)
            except OSError:  # its other end is closed
                more = b""
            if not more:
                break
            sent += more
    os.close(master)
    return sent.decode()


def test_without_colours_nothing_but_text_is_sent() -> None:
    """https://no-color.org; help and usage errors are another library's."""
    plain = sent_to_a_terminal("-c", SPEAKER, NO_COLOR="1")

    assert "\x1b" not in plain
    for words in ("a note", "WARNING: a warning", "title", "error: none", "--resume", "Missing"):
        assert words in plain
    assert "\x1b[" in sent_to_a_terminal("-c", SPEAKER)


def test_a_note_of_several_stages_is_shown_once_inside_one_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.note("3 classes")
    with console.saying_once():
        for said in ("3 classes", "2 files", "3 classes", "2 files"):
            console.note(said)
    console.note("2 files")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["3 classes", "3 classes", "2 files", "2 files"]
