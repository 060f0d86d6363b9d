"""The command line: all commands in their order, and what is said of an error. No other logic.

Nothing heavy is imported before a command runs, so that `--help` and usage errors are quick.
"""

import errno
import sys
from typing import Annotated

import typer

from qtool import __version__
from qtool.cli.compare import compare_app
from qtool.cli.convert import convert
from qtool.cli.export import export
from qtool.cli.inspect import inspect
from qtool.cli.options import send_what_is_taken, tell
from qtool.cli.sensitivity import sensitivity
from qtool.cli.start import check, init, list_choices, run
from qtool.cli.train import train
from qtool.cli.use import bench, predict
from qtool.errors import QtoolError
from qtool.stopping import heeding_signals
from qtool.world.launched import refuse_several

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # never qtool's mistake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(compare_app, name="compare")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 Typer calls it with the value alone
    if wanted:
        typer.echo(f"qtool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Train, convert, compare and export low-bit vision networks."""
    if context.invoked_subcommand != "train":
        refuse_several(str(context.invoked_subcommand))


app.command()(train)
app.command()(convert)
app.command()(export)
app.command()(predict)
app.command()(bench)
app.command()(inspect)
app.command()(init)
app.command()(check)
app.command()(run)
app.command()(sensitivity)
app.command("list")(list_choices)


def _with_local_cluster(argv: list[str]) -> list[str]:
    """Return arguments with the address of a local cluster after a `--cluster` that has none."""
    after = [*argv[1:], "--"]
    bare = [a == "--cluster" and b.startswith("-") for a, b in zip(argv, after, strict=bool(argv))]
    return ["--cluster=local" if no else a for a, no in zip(argv, bare, strict=True)]


def main(argv: list[str] | None = None) -> None:
    """Run qtool; show a QtoolError as a message and an exit code, never as a traceback."""
    send_what_is_taken()
    try:
        with heeding_signals(at_the_end=argv is None):
            app(_with_local_cluster(sys.argv[1:] if argv is None else argv))
    except QtoolError as error:
        from qtool.console import printable

        if not error.told:
            tell(printable(f"error: {error}"))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        from qtool.console import printable

        where = "" if error.filename is None else f"{error.filename}: "
        tell(printable(f"error: {where}{error.strerror}"))
        sys.exit(1)
    except Exception as error:
        own = sys.modules.get("qtool.settings.user_parts")  # where no part is loaded, none failed
        mistake = None if own is None else own.users_mistake(error)
        if mistake is None:
            raise
        from qtool.console import printable

        tell(printable(f"error: {mistake}"))
        sys.exit(mistake.exit_code)
