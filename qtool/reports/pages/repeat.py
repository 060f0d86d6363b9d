"""What a page says of how to do it again: the command, the recipes, and the environment."""

from collections.abc import Iterator, Mapping
from difflib import unified_diff

from qtool.reports.pages.page import Folded, Repeat


def again(command: str, recipes: Mapping[str, str], environment: Mapping[str, object]) -> Repeat:
    """Return command, recipes as far as they differ from the first one, and environment."""
    folded: list[Folded] = []
    names = list(recipes)
    for name, text in recipes.items():
        if name == names[0]:
            of = f" of {name}" if len(names) > 1 else ""
            folded.append(Folded(f"Recipe{of}", "resolved, as it was trained", text))
            continue
        before, after = recipes[names[0]].splitlines(), text.splitlines()
        changes = unified_diff(before, after, n=1, lineterm="")
        lines = [line for line in changes if not line.startswith(("---", "+++", "@@"))]
        told = "\n".join(lines) or "no difference"
        folded.append(Folded(f"Recipe of {name}", f"beside that of {names[0]}", told))
    if environment:
        folded.append(Folded("Environment", "", "\n".join(flat(environment))))
    return Repeat("The command, the recipe and what else numbers depend on.", command, folded)


def flat(data: Mapping[str, object], before: str = "") -> Iterator[str]:
    """Yield lines `key: value` of plain data, sections inside each other under dotted keys."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}: {value}"
