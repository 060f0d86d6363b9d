"""What the page on a run is made of: everything that its folder holds, as far as it is there."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from torch import nn

from qtool.console import warn
from qtool.errors import QtoolError
from qtool.files.json_data import read_json
from qtool.files.reading import intact
from qtool.files.whole import write_text
from qtool.graph.exact import load_model
from qtool.inspection.estimators import describe, panels
from qtool.inspection.inspect import prepared
from qtool.inspection.layer_figures import layer_figures, with_history
from qtool.numerics.estimators import ESTIMATORS
from qtool.quantizers.door.deployed import prepared_state
from qtool.reports.exports import Export, UnprovenExport
from qtool.reports.figures import figure
from qtool.reports.layer_figures import LayerFigures
from qtool.reports.pages.confusion import Confusion, confusion
from qtool.reports.pages.page import Picture
from qtool.reports.pages.run import RunReport, run_page
from qtool.reports.results import Conversion, Summary
from qtool.runs.access import OWN, Access
from qtool.runs.kept.answers import read_answers
from qtool.runs.kept.folder import RunFolder
from qtool.runs.kept.sound import why_not_fresh
from qtool.runs.run import NOT_OF_THIS_RUN, Run
from qtool.settings.user_code import NO_CODE

CPU = torch.device("cpu")
NO_CHECKPOINT = "There is no checkpoint, so nothing is said of the layers."


@dataclass(frozen=True)
class Network:
    """What a trained network's layers are like."""

    layers: Sequence[LayerFigures]
    left_float: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> "Network":
        """Return what there is to say of a prepared model."""
        return cls(layer_figures(model), prepared_state(model).left_float)

    @classmethod
    def kept(cls, run: Run) -> "Network | None":
        """Return what the checkpoint of a run tells; None where there is none."""
        if not run.folder.checkpoint.is_file():
            return None
        state = run.checkpoint
        with intact(run.folder.checkpoint, NOT_OF_THIS_RUN):
            model = prepared(run.recipe, run.network, state.architecture)
            load_model(model, state.judged)
        return cls.of(model)


def write_run_page(
    path: Path, output: Path, network: Network | None = None, access: Access = OWN
) -> None:
    """Write the page on the run in a folder.

    Args:
        path: of the folder.
        output: the page.
        network: what is known of it; None reads the checkpoint.
        access: whether the user's own network runs, which the checkpoint takes.

    Raises:
        InputError: If the folder holds no run, or what it holds is damaged.
        WriteError: If the page cannot be written.
    """
    write_text(output, run_page(run_report(path, network, access)))


def run_report(path: Path, network: Network | None = None, access: Access = OWN) -> RunReport:
    """Return what the folder of a run tells.

    Args:
        path: of the folder.
        network: what is known of it; None reads the checkpoint.
        access: whether the user's own network runs, which the checkpoint takes.

    Raises:
        InputError: If it holds no run, or what it holds is damaged.
    """
    allowed = RunFolder(path).code(run_copies=access.run_code).only("model")
    run = Run.open(path, CPU, access, code=allowed if network is None else NO_CODE)
    folder, recipe = run.folder, run.recipe
    history = folder.history() if folder.metrics.is_file() else []
    environment = read_json(folder.environment) if folder.environment.is_file() else {}
    found = network or Network.kept(run)
    conversion, export, notes = _deployed(folder)
    return RunReport(
        name=str(path),
        model=recipe.model.name,
        data=recipe.data.name,
        epochs=recipe.training.epochs,
        recipe=folder.recipe.read_text(encoding="utf-8"),
        summary=Summary.read(folder.summary) if folder.summary.is_file() else None,
        history=history,
        images=validation_images(environment),
        confusion=_confusion(folder, environment),
        layers=[] if found is None else with_history(found.layers, history),
        left_float={} if found is None else found.left_float,
        conversion=conversion,
        export=export,
        pictures=pictured(estimators_of(recipe.as_dict())),
        environment=environment,
        command=command_of(environment, folder),
        notes=notes if found is not None else [NO_CHECKPOINT, *notes],
    )


def _deployed(
    folder: RunFolder,
) -> tuple[Conversion | None, Export | UnprovenExport | None, list[str]]:
    """Return the reports on the integer model and the exported file, if they are of this run."""
    if not folder.convert.is_file() or not folder.integer.is_file():
        return None, None, []
    if why := why_not_fresh(folder, folder.integer):
        return None, None, [f"{folder.integer.name} is left out: {why}."]
    said = read_json(folder.convert)
    conversion = None if "to" in said else Conversion.of(said, folder.convert)
    if not folder.export.is_file() or not folder.onnx.is_file():
        return conversion, None, []
    return conversion, _export_of(read_json(folder.export), folder.export), []


def _export_of(said: Mapping[str, object], path: Path) -> Export | UnprovenExport:
    return (Export if "latency_ms" in said else UnprovenExport).of(said, path)


def _confusion(folder: RunFolder, environment: Mapping[str, object]) -> Confusion | None:
    """Return which classes a finished network takes for which; None where nobody knows."""
    answers = read_answers(folder)
    if answers is None or answers.label is None:
        return None
    data = environment.get("data")
    names = data.get("class_names") if isinstance(data, dict) else None
    told = [str(name) for name in names] if isinstance(names, list) else []
    return confusion(answers.label.tolist(), answers.prediction.tolist(), told)


def validation_images(environment: Mapping[str, object]) -> int | None:
    """Return how many images judged a run, as its environment says; None where it does not."""
    data = environment.get("data")
    validation = data.get("validation") if isinstance(data, dict) else None
    images = validation.get("images") if isinstance(validation, dict) else None
    return images if isinstance(images, int) else None


def command_of(environment: Mapping[str, object], folder: RunFolder) -> str:
    """Return the command that a run was begun by, or else one that trains it again."""
    said = environment.get("command")
    again = shlex.join(["qtool", "train", str(folder.recipe), "--run-dir", f"{folder}-again"])
    return said if isinstance(said, str) and said else again


def estimators_of(recipe: Mapping[str, object]) -> list[str]:
    """Return the gradient estimators that a recipe names, each once."""
    found: list[str] = []
    waiting: list[object] = [recipe.get("quantization")]
    while waiting:
        section = waiting.pop(0)
        if isinstance(section, list):
            waiting += section
        elif isinstance(section, dict):
            chosen = section.get("estimator")
            name = chosen.get("name") if isinstance(chosen, dict) else chosen
            found += [name] if isinstance(name, str) else []
            waiting += section.values()
    return list(dict.fromkeys(found))


def pictured(names: Iterable[str]) -> list[Picture]:
    """Draw estimators; those of a user's own file only where it has been run already."""
    found = []
    for name in dict.fromkeys(names):
        if name not in ESTIMATORS:
            continue
        entry = describe(name)
        drawn = [
            Markup(figure([panel], f"{name}, {panel.title}"))  # escapes what stands in it
            for panel in panels(entry)
        ]
        found.append(Picture(name, entry.summary, entry.formula, drawn))
    return found


class PageAtEnd:
    """Writes the page on a run once it is finished, where it is not there yet."""

    def __init__(self, folder: RunFolder) -> None:
        """Keep the folder of the run."""
        self.folder = folder
        self.network: Network | None = None

    def look(self, model: nn.Module) -> None:
        """See a network once it is trained, which saves reading it again."""
        self.network = Network.of(model)

    def write(self) -> None:
        """Write the page; say why where that is impossible."""
        page = self.folder.report
        with suppress(OSError):
            if page.stat().st_mtime_ns >= self.folder.summary.stat().st_mtime_ns:
                return
        with unless_impossible(page):
            write_run_page(self.folder.path, page, self.network)


@contextmanager
def unless_impossible(page: Path) -> Iterator[None]:
    """Write a page inside; where that fails say why, and leave the work that it shows as it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        warn(f"{page}: not written, for {error.name} is not installed; pip install qtool again")
    except (QtoolError, OSError) as error:
        warn(f"{page}: not written: {error}")
