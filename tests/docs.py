"""The generated parts of the documents: what the code says of itself, as tables.

    python -m tests.docs            # names the documents that are out of date, and ends with 1
    python -m tests.docs --write    # writes them, and the files of tests/generated_files.py

A block stands between `<!-- generated: NAME -->` and `<!-- end -->` in any document; NAME is a
function of this file. To add one, write a function here and decorate it: it returns Markdown,
made of schemas, signatures and docstrings only, so that nothing is written twice.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from qtool.data.datasets import DATASETS
from qtool.export.targets.target import TARGETS
from qtool.limit import Outcome
from qtool.limits import LIMITS
from qtool.models.papers import MODELS
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.schedules import SCHEDULES
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS
from tests import self_description as said
from tests.generated_files import FILES
from tests.self_description import ROOT, Choices

DOCUMENTS = [
    *(ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md"),
    *sorted(path for room in ("recipes", "qtool", "tests") for path in (ROOT / room).rglob("*.md")),
]
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
UNKNOWN = "no_such_name"
PLAIN_TABLES: dict[str, Choices] = {
    "models": MODELS,
    "data_sets": DATASETS,
    "optimizers": OPTIMIZERS,
    "losses": LOSSES,
    "schedules": SCHEDULES,
    "roundings": ROUNDINGS,
    "targets": TARGETS,
}
TABLES: dict[str, Choices] = {**PLAIN_TABLES, "ranges": RANGES, "estimators": ESTIMATORS}
BLOCKS: dict[str, Callable[[], str]] = {}


def block(function: Callable[[], str]) -> Callable[[], str]:
    """List a function under its name, as a block that documents may ask for."""
    BLOCKS[function.__name__] = cache(function)
    return function


def written(text: str) -> str:
    """Return a document with every block made anew."""
    return MARKED.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n", text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; a cell may hold line breaks, and | is written as GitHub wants it."""
    cells = [list(head), *map(list, rows)]
    lines = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in cells]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in lines)


def code(text: object) -> str:
    """Return text as Markdown code."""
    return f"`{text}`"


def prose(text: str) -> str:
    """Return text whose stars are stars, as in v*, outside of code."""
    return "".join(
        part if part.startswith("`") else part.replace("*", "\\*")
        for part in re.split(r"(`[^`]*`)", text)
    )


def row(choices: Choices, name: str) -> list[str]:
    """Return what there is to say of a choice: name, what it does, parameters, reference."""
    words = said.described(choices, name)
    what = [prose(words.summary), *map(code, words.formula), *map(prose, words.notes)]
    settings = [parameter(each) for each in said.parameters(choices, name)]
    return [code(name), "\n".join(what), "\n".join(settings), words.reference]


def parameter(given: said.Parameter) -> str:
    """Return a parameter with its default, and what else it may be."""
    if given.default is None:
        line = f"{code(given.name)} (required)"
    else:
        line = code(f"{given.name}: {given.default}")
    line += f" (or {', '.join(given.also)})" if given.also else ""
    return f"{line}: {prose(given.what)}" if given.what else line


def rows_of(choices: Choices) -> str:
    """Return the table of a registry, without columns that are empty in all its rows."""
    head = [choices.family, "what", "parameters", "reference"]
    rows = [row(choices, name) for name in said.names_of(choices)]
    kept = [k for k in range(len(head)) if any(cells[k] for cells in rows)]
    return table([head[k] for k in kept], [[cells[k] for k in kept] for cells in rows])


BLOCKS |= {title: partial(rows_of, choices) for title, choices in PLAIN_TABLES.items()}


def takes(key: str, field: FieldInfo) -> str:
    """Return what values a key takes: words, a choice of a table, or a number and its limits."""
    if words := said.words_of(field.annotation):
        return ", ".join(map(code, words))
    try:
        said.section_of(key).model_validate({key.rpartition(".")[2]: UNKNOWN})
    except ValidationError as error:
        for title, choices in TABLES.items():
            if f"unknown {choices.family} '{UNKNOWN}'" in str(error):
                return f"[{choices.family}](#{title.replace('_', '-')})"
    limits = [
        f"{word} {getattr(limit, name)}"
        for limit in field.metadata
        for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))
        if hasattr(limit, name)
    ]
    kinds = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    allowed = [field.annotation, *get_args(field.annotation)]
    return " ".join([next((kinds[kind] for kind in allowed if kind in kinds), ""), *limits]).strip()


@block
def recipe_keys() -> str:
    """Every key: its default, what it takes, and its docstring."""
    rows = []
    for key, field in said.recipe_keys():
        what = " ".join(str(field.description).split())
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else ""
        if not field.is_required() and default is not None:
            shown = code(said.plain(getattr(default, "name", default)))
        rows.append([code(key), shown, takes(key, field), what])
    return table(["key", "default", "takes", "what"], rows)


@block
def ranges() -> str:
    """Range rules, with what each says of itself in its decorator."""
    rows = []
    for name in said.names_of(RANGES):
        facts, cells = RANGES.facts(name), row(RANGES, name)
        sides = {"weights": facts.serves("weights"), "inputs": facts.serves("activations")}
        served = ", ".join(side for side, serves in sides.items() if serves)
        rows.append([*cells[:2], served, facts.learns or "", *cells[2:]])
    return table(["range", "scale", "of", "trains", "parameters", "reference"], rows)


@block
def estimators() -> str:
    """Every estimator: formula, parameters, class and reference."""
    rows = []
    for entry in said.estimators():
        name = str(entry["name"])
        cells = row(ESTIMATORS, name)
        grids = "two levels" if "two levels" in str(entry["family"]) else "any"
        verdict = f"out: {entry['reason']}"
        if entry["in_class"]:
            verdict = f"in, alpha = {entry['alpha']:.4g}"
        rows.append([*cells[:3], grids, verdict, cells[3]])
    return table(["estimator", "gradient", "parameters", "grids", "class", "reference"], rows)


@block
def pictures() -> str:
    """The picture of every estimator."""
    place = "../../.github/estimators"
    names = [entry["name"] for entry in said.estimators()]
    return "\n".join(f'<img src="{place}/{n}.svg" alt="{n}" width="49%">' for n in names)


@block
def command_table() -> str:
    """Every command, and what it does."""
    rows = []
    for name, command in said.commands().items():
        typed = " ".join([name, *said.arguments(command)])
        rows.append([code(typed), said.documented(command.help).summary])
    return table(["command", "what it does"], rows)


@block
def option_table() -> str:
    """Every option, and the commands that take it."""
    takers: dict[tuple[str, str], list[str]] = {}
    for name, command in said.commands().items():
        for option, flags in said.options(command).items():
            entry = " ".join(map(code, flags)), str(option.help)
            takers.setdefault(entry, []).append(name.removeprefix("qtool "))
    rows = []
    for (flag, words), names in takers.items():
        first, compare, rest = ", ".join(names).partition("compare ")
        short = first + compare + rest.replace("compare ", "")
        rows.append([flag, words, "every command" if len(names) == len(said.commands()) else short])
    return table(["option", "what it says", "commands"], rows)


@block
def rooms() -> str:
    """The rooms of qtool/ from top to bottom, those of one layer held together."""
    layers = next(c["layers"] for c in said.contracts() if c["type"] == "layers")
    lines = ["```"]
    for layer in layers:
        names = [name.strip() for name in layer.split("|")]
        for position, name in enumerate(names):
            last = position == len(names) - 1
            edge = "─" if len(names) == 1 else "┌" if position == 0 else "└" if last else "├"
            path = ROOT / "qtool" / name
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            shown = f"{name}/" if path.is_dir() else f"{name}.py"
            first = said.module_docstring(file).partition("\n")[0].rstrip(".")
            lines.append(f"{edge} {shown:<18}{first}")
    return "\n".join([*lines, "```"])


@block
def known_limits() -> str:
    """Every limit: what becomes of the network, layer or norm, in whose words, and what to do."""
    rows = []
    for limit in LIMITS.values():
        cells = [re.sub(r"\{(\w+)\}", r"*\1*", prose(text)) for text in (limit.says, limit.do)]
        rows.append(
            [limit.outcome, *(text.replace("{{", "{").replace("}}", "}") for text in cells)]
        )
    order = list(get_args(Outcome))
    return table(
        ["outcome", "what is said", "what to do"], sorted(rows, key=lambda r: order.index(r[0]))
    )


@block
def import_contracts() -> str:
    """What each import contract forbids."""
    rows = []
    for contract in said.contracts():
        rooms = f"every room of {', '.join(map(code, contract.get('containers', [])))}"
        cells = [
            ", ".join(map(code, contract.get(key, []))) or otherwise
            for key, otherwise in (
                ("source_modules", rooms),
                ("forbidden_modules", "what stands above it in the list"),
                ("ignore_imports", ""),
            )
        ]
        rows.append([str(contract["name"]), *cells])
    return table(["contract", "who", "may not import", "but for"], rows)


def is_current(path: Path, text: str) -> bool:
    """Tell whether a file is there and holds a text."""
    return path.exists() and path.read_text() == text


def main() -> None:
    """Compare the blocks of all documents, and generated files, with the code, or write them."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is out of date")
    write = parser.parse_args().write
    made = {path: written(path.read_text()) for path in DOCUMENTS}
    made |= {path: text() for path, text in FILES.items()}
    stale = [path for path, text in made.items() if not is_current(path, text)]
    for path in stale:
        if write:
            path.write_text(made[path])
        sys.stdout.write(f"{'wrote' if write else 'out of date:'} {path.relative_to(ROOT)}\n")
    if stale and not write:
        sys.exit("run: python -m tests.docs --write")


if __name__ == "__main__":
    main()
