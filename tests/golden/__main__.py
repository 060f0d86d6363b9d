"""Compare what people see with what is kept of it, or keep it: `python -m tests.golden --write`."""

import argparse
import difflib
import sys

from tests.golden.faces import HERE, kept, now


def main() -> None:
    """Print what differs and end with 1, or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what differs")
    write = parser.parse_args().write
    old, (new, _) = kept(), now()
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, ""), new.get(name, "")
        lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
        sys.stdout.writelines(difflib.unified_diff(*lines, f"kept/{name}", f"now/{name}"))
        if write and name in new:
            (HERE / name).parent.mkdir(exist_ok=True)
            (HERE / name).write_text(after)
        elif write:
            (HERE / name).unlink()
    if old != new and not write:
        sys.exit("run: python -m tests.golden --write")


if __name__ == "__main__":
    main()
