"""The command line: its options, its help, its speed and its JSON."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import typer

from qtool import __version__, uses
from qtool.cli import app, main
from qtool.cli.options import interruptible
from qtool.errors import InputError, QtoolError, TrainingError
from qtool.stopping import Stopped
from tests.kit import as_json, shell, write_recipe

# CONTRACT.md: people write scripts against these. Add freely; take away or rename never.
OPTIONS = {
    "qtool": ["--version", "--install-completion", "--show-completion"],
    "train": [
        "RECIPE",
        "--run-dir",
        "--overwrite",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--resume",
        "--profile",
        "--no-report",
        "--json",
    ],
    "convert": [
        "SOURCE",
        "--output",
        "--to",
        "--no-saturation",
        "--best",
        "--method",
        "--calibration-images",
        "--max-drop",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--json",
    ],
    "export": [
        "SOURCE",
        "--output",
        "--target",
        "--batch",
        "--annotation",
        "--no-annotation",
        "--ceil",
        "--strict",
        "--measure",
        "--unproven",
        "--preprocess",
        "--softmax",
        "--any-size",
        "--set",
        "--data-root",
        "--run-code",
        "--json",
    ],
    "predict": [
        "MODEL",
        "IMAGES",
        "--top",
        "--csv",
        "--set",
        "--data-root",
        "--run-code",
        "--json",
    ],
    "bench": [
        "MODELS",
        "--threads",
        "--batch",
        "--rounds",
        "--profile",
        "--set",
        "--data-root",
        "--run-code",
        "--json",
    ],
    "compare": [],
    "compare estimators": [
        "RECIPE",
        "--estimators",
        "--on",
        "--arm",
        "--tune",
        "--match",
        "--explain",
        "--seeds",
        "--margin",
        "--looks",
        "--output",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--jobs",
        "--threads",
        "--keep",
        "--cluster",
        "--no-report",
        "--figure",
        "--csv",
        "--json",
    ],
    "compare schedules": [
        "RECIPE",
        "--schedules",
        "--on",
        "--windows",
        "--tune",
        "--match",
        "--explain",
        "--seeds",
        "--margin",
        "--looks",
        "--output",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--jobs",
        "--threads",
        "--keep",
        "--cluster",
        "--no-report",
        "--figure",
        "--csv",
        "--json",
    ],
    "compare equivalence": [
        "RECIPE",
        "--estimator",
        "--learning-rates",
        "--explain",
        "--seeds",
        "--margin",
        "--looks",
        "--output",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--jobs",
        "--threads",
        "--keep",
        "--cluster",
        "--no-report",
        "--figure",
        "--csv",
        "--json",
    ],
    "compare runs": [
        "SOURCES",
        "--output",
        "--set",
        "--data-root",
        "--run-code",
        "--no-report",
        "--figure",
        "--csv",
        "--json",
    ],
    "inspect": ["SOURCE", "--output", "--repair", "--run-code", "--json"],
    "check": ["RECIPE", "--set", "--data-root", "--run-code", "--device", "--json"],
    "run": [
        "RECIPE",
        "--run-dir",
        "--overwrite",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--resume",
        "--target",
        "--no-report",
        "--json",
    ],
    "sensitivity": [
        "RECIPE",
        "--bits",
        "--output",
        "--set",
        "--data-root",
        "--run-code",
        "--device",
        "--json",
    ],
    "init": ["FOLDER", "--from", "--output", "--json"],
    "list": ["KIND", "FOLDER", "--json"],
}
# Not pydantic: Typer itself loads it when it reads arguments.
HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "torchvision", "yaml"}
Done = Callable[..., tuple[str, str]]


def commands() -> dict[str, Any]:
    """Return every command and group by what people type after `qtool`."""
    found: dict[str, Any] = {"qtool": typer.main.get_command(app)}
    for name, command in found["qtool"].commands.items():
        found[name] = command
        inner = getattr(command, "commands", {})
        found |= {f"{name} {last}": item for last, item in inner.items()}
    return found


def options(command: Any) -> list[str]:
    listed = []
    for item in command.params:
        if item.param_type_name == "argument":
            listed.append(item.name.upper())
        else:
            listed += [*item.opts, *item.secondary_opts]
    return [name for name in listed if name not in ("--help", "-h")]


def test_commands_and_options_are_the_frozen_ones() -> None:
    assert {name: options(command) for name, command in commands().items()} == OPTIONS


@pytest.mark.parametrize(
    "name", [name for name, parts in OPTIONS.items() if "--json" in parts], ids=str
)
def test_the_help_of_a_command_ends_in_an_example_that_parses(name: str) -> None:
    command = commands()[name]
    examples = [line.strip() for line in command.help.splitlines() if "Example:" in line]
    assert len(examples) == 1
    start = f"Example: qtool {name} "
    assert examples[0].startswith(start)
    words = examples[0].removeprefix(start).split()
    assert command.make_context(name, words).params


@pytest.mark.parametrize("name", OPTIONS, ids=str)
def test_help_shows_every_option_with_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = shell(*name.removeprefix("qtool").split(), "--help")
    assert (code, err) == (0, "")
    assert [option for option in OPTIONS[name] if option.lower() not in out] == []
    command = commands()[name]
    assert [item.name for item in command.params if not getattr(item, "help", "")] == []


# A child lists what it imported on the last line of standard error.
CHILD = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from qtool.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "-h"], 0),
        (["compare", "estimators", "--help"], 0),
        (["train", "r.yaml", "--epochs", "3"], 2),
        (["export", "runs/a", "--batch", "x"], 2),
        (["compare", "estimators", "r.yaml", "--seeds", "0"], 2),
        (["compare", "equivalence", "r.yaml", "--learning-rates", "x"], 2),
        (["convert", "runs/a", "--to", "float"], 2),
        (["convert", "runs/a", "--to", "straight_through", "--no-saturation"], 2),
        (["convert", "runs/a", "--to", "straight_through", "--best"], 2),
        (["convert", "runs/a", "--to", "straight_through", "--method", "default"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_usage_errors_load_nothing_heavy(argv: list[str], code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, *argv], capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    loaded = ended.stderr.splitlines()[-1].split()
    assert HEAVY.intersection(loaded) == set()
    assert {name for name in loaded if name.startswith("qtool.")} == {
        "qtool.cli",
        "qtool.cli.app",
        "qtool.cli.compare",
        "qtool.cli.completion",
        "qtool.cli.convert",
        "qtool.cli.export",
        "qtool.cli.first",
        "qtool.cli.inspect",
        "qtool.cli.lists",
        "qtool.cli.options",
        "qtool.cli.running",
        "qtool.cli.sensitivity",
        "qtool.cli.start",
        "qtool.cli.train",
        "qtool.cli.use",
        "qtool.cli.words",
        "qtool.errors",
        "qtool.known",
        "qtool.problems",
        "qtool.stopping",
        "qtool.world",
        "qtool.world.launched",
    }


# Each is refused by what its words and the folder say; a run lies there that is not trained.
WITHOUT_TORCH = {
    "train no.yaml": "no.yaml: no such file or folder; give the path of a recipe",
    "train list.yaml": "list.yaml: holds a list; a recipe is a mapping",
    "train r.yaml --set seed": "--set seed: write key=value",
    "train r.yaml --set training.epoch=3": "r.yaml: 1 problem\n  training.epoch: unknown key; did",
    "train r.yaml --set model.name=lenet": "r.yaml: 1 problem\n  model.name: unknown model 'lenet'",
    "inspect wrong.yaml": "wrong.yaml: 1 problem\n  quantization.weights.bits: 9 is more than 8",
    "train r.yaml --resume --overwrite": "--resume goes on with a run, and --overwrite",
    "train r.yaml --resume --run-dir no": "no: no such folder; leave out --resume",
    "train r.yaml --device gpu": "--device gpu: choose auto, cpu, cuda",
    "convert no": "no: no such file or folder; give a run folder or a recipe",
    "convert run --output m.onnx": "m.onnx: an integer model is a .safetensors file; qtool export",
    "export no": "no: no such file or folder; give a run folder or integer model",
    "export r.yaml": "r.yaml: a recipe; give a run folder or integer model: train or",
    "export run --output m.tflite": "m.tflite: qtool writes ONNX files, whose names end in .onnx",
    "compare estimators no.yaml": "no.yaml: no such file or folder",
    "compare schedules no.yaml": "no.yaml: no such file or folder",
    "compare equivalence no.yaml": "no.yaml: no such file or folder",
    "compare runs run no": "no: neither a run folder nor an .onnx file",
    "predict no a.png": "no: no such file or folder; give a run folder, an integer model",
    "predict run no.png": "no.png: no such file or folder; give images",
    "bench . run": ".: not a run folder, it has no recipe.yaml",
    "inspect no": "no: no such file or folder; give a recipe, run",
    "inspect no.yaml": "no.yaml: no such file or folder; give the path of a recipe",
}
CHILD_OF_ALL = """
import sys
from qtool.cli import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as ended:
        heavy = {"torch", "torchvision", "onnx"} & set(sys.modules)
        print(f"ended by {ended.code} {sorted(heavy)}", file=sys.stderr, flush=True)
"""


def test_what_can_be_told_before_torch_is_loaded_is_told_then(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "list.yaml").write_text("[1]")
    wrong = write_recipe(tmp_path, {"quantization.weights.bits": 9})
    wrong.rename(tmp_path / "wrong.yaml")
    write_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    write_recipe(tmp_path / "run").rename(tmp_path / "run" / "recipe.yaml")
    ended = subprocess.run(
        [sys.executable, "-c", CHILD_OF_ALL],
        input="\n".join(WITHOUT_TORCH),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )

    said = ended.stderr.split("ended by ")
    assert len(said) == len(WITHOUT_TORCH) + 1
    codes = [text.partition("\n")[0] for text in said[1:]]
    messages = [said[0], *(text.partition("\n")[2] for text in said[1:])]
    for (command, why), message, code in zip(WITHOUT_TORCH.items(), messages, codes, strict=False):
        assert message.startswith(f"error: {why}"), command
        assert code == "2 []", command


PLAIN = """
import typer

app = typer.Typer()


@app.command()
def one() -> None:
    "Do one thing."


@app.command()
def other() -> None:
    "Do another."


app()
"""


def test_help_takes_little_more_than_any_typer_program_s(tmp_path: Path) -> None:
    """Side by side, as how long either takes is the processor's; torch takes ten times as long."""
    plain = tmp_path / "plain.py"
    plain.write_text(PLAIN)
    untraced = {name: os.environ[name] for name in os.environ if not name.startswith("COVERAGE_")}

    def seconds_of_children() -> float:
        """Return their time on a core, which other processes do not add to."""
        used = os.times()
        return used.children_user + used.children_system

    def seconds(*program: str) -> float:
        start = seconds_of_children()
        command = [sys.executable, *program, "--help"]
        subprocess.run(command, capture_output=True, check=True, env=untraced)
        return seconds_of_children() - start

    ratios = [seconds("-m", "qtool") / seconds(str(plain)) for _ in range(5)]
    assert median(ratios) < 2.0, ratios


def test_the_version_is_the_package_s() -> None:
    assert shell("--version")[:2] == (0, f"qtool {__version__}\n")


@pytest.mark.parametrize(
    ("raised", "code", "last_line"),
    [
        (TrainingError("it diverged"), 1, "error: it diverged"),
        (InputError("[bold]a[/bold]: no file"), 2, "error: [bold]a[/bold]: no file"),
        (QtoolError("it failed"), 1, "error: it failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["work failed", "wrong input", "other", "Ctrl-C"],
)
def test_errors_become_a_message_and_an_exit_code(
    raised: BaseException,
    code: int,
    last_line: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(_: Path, **options: object) -> None:
        raise raised

    monkeypatch.setattr(uses, "inspect", fail)
    assert shell("inspect", str(tmp_path)) == (code, "", f"{last_line}\n")


def test_a_signal_while_a_library_was_loaded_ends_a_command_as_any_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @interruptible
    def command(behind: BaseException | None) -> None:
        raise ImportError("initialization failed") from behind

    with pytest.raises(typer.Exit) as ended:
        command(Stopped(signal.SIGTERM))
    assert ended.value.exit_code == 143
    assert capsys.readouterr().err == "ended by SIGTERM\n"
    with pytest.raises(ImportError, match="initialization failed"):
        command(None)


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: Path, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(uses, "inspect", fail)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(tmp_path)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    write_recipe(folder)
    return folder


@pytest.fixture
def done(place: Path, monkeypatch: pytest.MonkeyPatch) -> Done:
    """A function that does a command in the shared folder; returns its output and its errors."""
    monkeypatch.chdir(place)

    def run(*argv: str) -> tuple[str, str]:
        code, out, err = shell(*argv)
        assert code == 0, err
        return out, err

    return run


ARMS = ["--estimators", "identity,straight_through", "--seeds", "1", "--output", "arms"]
FIXED = ["--set", "quantization.weights.range=he_uniform"]
EQUAL = ["r.yaml", "--estimator", "sinusoidal", "--learning-rates", "0.01", "--output", "same"]
SHAPES = ["r.yaml", "--schedules", "step", "--seeds", "1", "--output", "shapes"]
STORIES = [
    (["train", "r.yaml", "--run-dir", "run"], "run/summary.json"),
    (["train", "r.yaml", "--run-dir", "run", "--resume"], "run/summary.json"),
    (["convert", "run"], "run/convert.json"),
    (["convert", "r.yaml", "--output", "plain.safetensors"], "plain.convert.json"),
    (["convert", "run", "--no-saturation", "--output", "w.safetensors"], "w.convert.json"),
    (["export", "run"], "run/export.json"),
    (["export", "run/integer.safetensors", "--output", "i.onnx"], "i.export.json"),
    (["compare", "estimators", "r.yaml", *ARMS], "arms/comparison.json"),
    (["compare", "runs", "run", "run/model.onnx", "--output", "both"], "both/comparison.json"),
    (["train", "r.yaml", "--run-dir", "p", "--profile", "--resume"], "p/summary.json"),
    (["compare", "equivalence", *EQUAL, *FIXED], "same/comparison.json"),
    (["train", "r.yaml", "--run-dir", "fixed", *FIXED], "fixed/summary.json"),
    (["convert", "fixed", "--to", "straight_through", "--output", "st"], "st/convert.json"),
    (["compare", "schedules", *SHAPES, *FIXED], "shapes/comparison.json"),
]
READERS = [
    ["inspect", "r.yaml"],
    ["inspect", "run"],
    ["inspect", "run/integer.safetensors"],
    ["inspect", "run/model.onnx"],
    ["compare", "runs", "run"],
]


@pytest.mark.usefixtures("untimed")
def test_json_is_one_object_and_the_same_as_the_file_that_was_written(done: Done) -> None:
    Path("p").mkdir()  # empty, where --resume begins
    for argv, written in STORIES:
        out, err = done(*argv, "--json")
        result = as_json(out)
        assert isinstance(result, dict)
        assert result == json.loads(Path(written).read_text()), argv
        if "--resume" not in argv:
            assert "{" not in err
    for argv in READERS:
        out, err = done(*argv, "--json")
        assert isinstance(as_json(out), dict)
        assert err == ""
    # people get the same results as tables
    again = [STORIES[-1][0]]  # the others' have tests of their own
    to_straight_through = ["convert", "fixed", "--to", "straight_through", "--output", "st2"]
    for argv in [STORIES[1][0], *again, to_straight_through, *READERS]:
        out, _ = done(*argv)
        assert out.strip()
        assert not out.startswith("{")


def test_arms_go_into_their_own_folders(done: Done, place: Path) -> None:
    done("compare", "estimators", "r.yaml", *ARMS)
    trials = sorted(str(p.parent.relative_to(place)) for p in place.glob("arms/*/*/recipe.yaml"))
    assert trials == ["arms/identity/seed-0", "arms/straight_through/seed-0"]
