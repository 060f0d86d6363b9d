"""A user's own estimator from the recipe to the ONNX file, and what goes wrong on the way."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool import pipeline
from qtool.numerics.estimators import ESTIMATORS
from qtool.settings import user_parts
from tests.kit import shell, write_recipe

MY = """
def soft_step(grad, u, low, high, *, strength=1.0):
    return grad * strength * ((low <= u) & (u <= high))


def small(grad, u, low, high):
    if u.numel() > 100:
        raise ValueError("a hundred values are enough")
    return grad
"""
TWO_EPOCHS = {
    "data.train_samples": 128,
    "training": {"epochs": 2, "learning_rate": 0.02, "optimizer": "sgd"},
}
Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Begin without users' estimators; the function returned forgets them as a new process does."""
    own = {name: ESTIMATORS[name] for name in ESTIMATORS.names() if ":" not in name}

    def begin_anew() -> None:
        monkeypatch.setattr(ESTIMATORS, "_members", dict(own))
        monkeypatch.setattr(user_parts, "_SOURCES", {})

    begin_anew()
    return begin_anew


@pytest.fixture
def qtool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command in `tmp_path`: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[Any, str, str]:
        code, out, err = shell(*argv)
        assert "Traceback" not in err
        return code, out, err

    return run


def write(
    folder: Path, estimator: Any, text: str = MY, changes: Mapping[str, Any] | None = None
) -> Path:
    """Write `my.py` and a recipe whose weights are trained with an estimator."""
    (folder / "my.py").write_bytes(text.encode())
    chosen = {"quantization.weights.estimator": estimator}
    return write_recipe(folder, TWO_EPOCHS | chosen | (changes or {}))


def train(recipe: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return pipeline.train(recipe, run_dir=folder, device="cpu", **more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_copy_of_a_built_in_estimator_gives_the_very_same_run(tmp_path: Path) -> None:
    train(write(tmp_path, "my.py:soft_step"), tmp_path / "own")
    train(write(tmp_path, "straight_through"), tmp_path / "built-in")
    train(write(tmp_path, {"name": "my.py:soft_step", "strength": 0.5}), tmp_path / "weak")
    assert same(tensors(tmp_path / "own"), tensors(tmp_path / "built-in"))
    assert not same(tensors(tmp_path / "own"), tensors(tmp_path / "weak"))


def test_a_parameter_may_be_scheduled(tmp_path: Path) -> None:
    falls = {"name": "step", "start": 1.0, "stop": 0.0, "at": [0.5]}
    estimator = {"name": "my.py:soft_step", "strength": falls}
    plain = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    for epochs, chosen in ((1, "my.py:soft_step"), (2, estimator)):
        changes = {"training.optimizer": plain, "training.epochs": epochs}
        train(write(tmp_path, chosen, changes=changes), tmp_path / f"{epochs}")
    found, expected = (tensors(tmp_path / name) for name in ("2", "1"))
    assert torch.equal(found["conv2.weight"], expected["conv2.weight"])
    assert not torch.equal(found["conv2.bias"], expected["conv2.bias"])


@pytest.mark.parametrize("text", [MY, MY.replace("\n", "\r\n"), f"{MY}# ü\n"], ids=repr)
def test_a_run_keeps_its_source_and_its_hash(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, "my.py:soft_step", text)
    train(path, tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert environment["estimator_sources"] == {"my.py": digest}
    assert (tmp_path / "run" / "my.py").read_bytes() == text.encode()


def test_a_run_without_own_estimators_says_so(tmp_path: Path) -> None:
    train(write(tmp_path, "identity"), tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["estimator_sources"] == {}
    assert not (tmp_path / "run" / "my.py").exists()


def stop_after_one_epoch(folder: Path) -> None:
    """Leave a run as it is after its first epoch: killed, its checkpoint in place."""
    (folder / "summary.json").unlink()


@pytest.mark.parametrize("text", [MY, MY.replace("\n", "\r\n")], ids=["LF", "CRLF"])
def test_a_run_goes_on_and_converts_without_the_original_file(
    text: str, tmp_path: Path, qtool: Run, forget: Callable[[], None]
) -> None:
    path = write(tmp_path, "my.py:soft_step", text)
    train(path, tmp_path / "whole")
    train(path, tmp_path / "run")
    stop_after_one_epoch(tmp_path / "run")
    (tmp_path / "my.py").unlink()
    forget()
    again = ["train", "run/recipe.yaml", "--run-dir", "run", "--resume"]
    code, out, err = qtool(*again)
    assert (code, out) == (2, "")
    assert "my.py: not in the working directory, nor on PYTHONPATH; --run-code runs the copy" in err
    code, _, err = qtool(*again, "--run-code")
    assert code == 0, err
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    forget()
    assert qtool("convert", "run", "--device", "cpu")[0] == 0
    forget()
    assert qtool("inspect", "run")[0] == 0


@pytest.mark.usefixtures("untimed")
def test_what_is_exported_needs_no_source(
    tmp_path: Path, qtool: Run, forget: Callable[[], None]
) -> None:
    estimator = {"name": "my.py:soft_step", "strength": 0.5}
    train(write(tmp_path, estimator), tmp_path / "run")
    assert qtool("export", "run")[0] == 0
    for copy in (tmp_path / "my.py", tmp_path / "run" / "my.py"):
        copy.unlink()
    for file in ("model.onnx", "integer.safetensors"):
        forget()
        code, out, err = qtool("inspect", f"run/{file}", "--json")
        assert code == 0, err
        assert len(json.loads(out)["layers"]) == 5
    forget()
    assert qtool("export", "run/integer.safetensors", "--output", "again.onnx")[0] == 0
    forget()
    assert qtool("compare", "runs", "run/model.onnx")[0] == 0


@pytest.mark.parametrize("finished", [True, False])
def test_another_source_is_another_run(
    finished: bool, tmp_path: Path, qtool: Run, forget: Callable[[], None]
) -> None:
    path = write(tmp_path, "my.py:soft_step")
    train(path, tmp_path / "run")
    if not finished:
        stop_after_one_epoch(tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    write(tmp_path, "my.py:soft_step", MY.replace("* strength", "* 2 * strength"))
    forget()
    code, out, err = qtool("train", "r.yaml", "--run-dir", "run", "--resume")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: run: holds a run with another my.py, of which")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_recipe_that_is_only_converted_keeps_the_source_too(tmp_path: Path, qtool: Run) -> None:
    write(tmp_path, "my.py:soft_step")
    assert qtool("convert", "r.yaml", "--device", "cpu")[0] == 0
    assert (tmp_path / "runs" / "r" / "my.py").read_text() == MY
    assert qtool("convert", "r.yaml", "--device", "cpu")[0] == 0


# what is wrong -> (estimator, my.py, the message after "error: ")
WRONG: dict[str, tuple[Any, str | None, str]] = {
    "no file": (
        "my.py:soft_step",
        None,
        "my.py: no such file; an estimator lies beside its recipe",
    ),
    "near miss": ("my.py:soft_stp", MY, "has no function soft_stp; did you mean soft_step?"),
    "a folder": (
        "sub/my.py:soft_step",
        MY,
        "the name of a file beside the recipe, without folders",
    ),
    "not Python": ("my.py:soft_step", f"{MY}\ndef (:\n", "my.py:11: not Python: invalid syntax"),
    "fails": (
        "my.py:soft_step",
        MY.replace("return grad * strength", "return undefined"),
        "my.py:3: NameError: name 'undefined' is not defined",
    ),
    "leaves": ("my.py:soft_step", f"{MY}\nexit()\n", "my.py:11: SystemExit"),
    "wrong signature": (
        "my.py:soft_step",
        "def soft_step(grad, u):\n    return grad\n",
        "my.py:1: soft_step must take grad, u, low, high, and its own parameters after a *",
    ),
    "wrong shape": (
        "my.py:soft_step",
        "def soft_step(grad, u, low, high):\n    return grad.sum()\n",
        "my.py:1: soft_step returned the shape []; u has [24]",
    ),
    "no tensor": (
        "my.py:soft_step",
        "def soft_step(grad, u, low, high):\n    return 1\n",
        "my.py:1: soft_step returned int, not a tensor",
    ),
    "unknown parameter": (
        {"name": "my.py:soft_step", "strenth": 1.0},
        MY,
        "quantization.weights.estimator.strenth: my.py:soft_step has no parameter strenth; did you "
        "mean strength?",
    ),
    "parameter of another type": (
        {"name": "my.py:soft_step", "strength": "strong"},
        MY,
        "quantization.weights.estimator.strength: 'strong' is not a number",
    ),
    "a wrong schedule": (
        {"name": "my.py:soft_step", "strength": {"name": "linear", "start": 1.0}},
        MY,
        "quantization.weights.estimator.strength.stop: missing; linear needs it",
    ),
}


@pytest.mark.parametrize(("estimator", "text", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_message_and_leaves_nothing_behind(
    estimator: Any, text: str | None, why: str, tmp_path: Path, qtool: Run
) -> None:
    write(tmp_path, estimator, text or "")
    if text is None:
        (tmp_path / "my.py").unlink()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = qtool("train", "r.yaml")
    assert (code, out) == (2, "")
    message = " ".join(err.split())
    assert message.startswith("error: r.yaml: 1 problem quantization.weights.estimator")
    assert why in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_in_an_override_is_named_with_its_place(tmp_path: Path, qtool: Run) -> None:
    overrides = [{"match": "conv1", "activations": {"estimator": "my.py:nothing"}}]
    write(tmp_path, "straight_through", changes={"quantization.overrides": overrides})
    code, _, err = qtool("train", "r.yaml")
    assert code == 2
    assert "quantization.overrides.0.activations.estimator: my.py: has no function nothing" in err


def test_a_mistake_that_only_training_meets_is_shown_as_the_users(
    tmp_path: Path, qtool: Run
) -> None:
    write(tmp_path, "my.py:small")
    code, out, err = qtool("train", "r.yaml", "--run-dir", "run", "--device", "cpu")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last == "error: my.py:8: ValueError: a hundred values are enough"


def test_own_and_built_in_estimators_are_compared(tmp_path: Path, qtool: Run) -> None:
    write(tmp_path, "straight_through", changes={"training.epochs": 1})
    names = "my.py:soft_step,straight_through,identity"
    argv = ["compare", "estimators", "r.yaml", "--estimators", names, "--on", "weights"]
    argv += ["--seeds", "2", "--output", "out", "--device", "cpu", "--json"]
    code, out, err = qtool(*argv)
    assert code == 0, err
    arms = {arm["name"]: arm["values"] for arm in json.loads(out)["arms"]}
    assert list(arms) == ["my.py:soft_step", "straight_through", "identity"]
    assert arms["my.py:soft_step"] == arms["straight_through"]
    assert (tmp_path / "out" / "my.py:soft_step" / "seed-1" / "my.py").read_text() == MY
    assert qtool(*argv)[1] == out


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my.py:soft_stp", "my.py: has no function soft_stp; did you mean soft_step?"),
        ("no.py:soft_step", "no.py: no such file; an estimator lies beside its recipe"),
    ],
)
def test_an_own_estimator_that_is_not_there_is_not_compared(
    name: str, why: str, tmp_path: Path, qtool: Run
) -> None:
    write(tmp_path, "straight_through")
    code, out, err = qtool("compare", "estimators", "r.yaml", "--estimators", name)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith(why)
    assert not (tmp_path / "runs").exists()
