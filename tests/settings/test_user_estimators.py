"""A user's own estimator: read from a file, tried, and blamed for its own mistakes."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qtool
from qtool.errors import RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.recipe.parts import sources_of_estimators
from qtool.settings import user_parts
from qtool.settings.choices import moves
from qtool.settings.quantization import Quantization
from qtool.settings.section import check
from qtool.settings.tensors import WeightQuantization
from qtool.settings.user_estimators import load_estimator, used_by
from qtool.settings.user_parts import is_users

SOFT = """
def soft(grad, u, low, high, *, strength=1.0):
    return grad * strength * ((low <= u) & (u <= high))
"""


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the table of estimators as it was."""
    with monkeypatch.context() as patch:
        patch.setattr(ESTIMATORS, "_members", dict(ESTIMATORS._members))
        patch.setattr(user_parts, "_SOURCES", {})
        yield


def load(folder: Path, text: str, function: str = "soft", **params: Any) -> str:
    (folder / "my.py").write_text(text)
    load_estimator(f"my.py:{function}", folder, params)
    return f"my.py:{function}"


def refusal(folder: Path, text: str, function: str = "soft", **params: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, function, **params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "users"),
    [
        ("my.py:soft", True),
        ("my.py:soft step", False),
        ("my.py:", False),
        ("my.py", False),
        ("my:soft", True),
        ("my_package.models:Net", True),
        ("my_package.models:Net.small", True),
        ("my-package:soft", False),
        ("timm:resnet18", False),
        ("straight_through", False),
        ("/a/my.py:soft", True),
        ("/a:b/my.py:soft", True),
        ("a:my.py:soft", False),
    ],
)
def test_a_users_estimator_is_known_by_its_name(name: str, users: bool) -> None:
    assert is_users(name) == users


def test_a_function_of_a_file_stands_in_the_table(tmp_path: Path) -> None:
    name = load(tmp_path, SOFT)
    u, grad = torch.linspace(-9, 9, 50), torch.randn(50)
    found = ESTIMATORS.build(name, strength=0.5)(grad, u, -7.0, 7.0)
    assert torch.equal(found, 0.5 * ESTIMATORS["straight_through"](grad, u, -7.0, 7.0))


def test_loading_again_takes_what_the_file_says_now(tmp_path: Path) -> None:
    name = load(tmp_path, SOFT)
    load(tmp_path, SOFT.replace("grad * strength", "0 * grad"))
    assert not ESTIMATORS[name](torch.ones(3), torch.zeros(3), -1.0, 1.0).any()


@pytest.mark.parametrize(
    "parameter",
    [
        "strength=1.0",
        "strength=1",
        "strength: float = 1.0",
        "strength: 'float' = 1.0",
        "strength",
        "strength: Annotated[float, Field(gt=0)] = 1.0",
    ],
)
def test_every_parameter_is_checked_as_a_number_and_takes_a_schedule(
    parameter: str, tmp_path: Path
) -> None:
    head = "from typing import Annotated\nfrom pydantic import Field\n"
    name = load(tmp_path, head + SOFT.replace("strength=1.0", parameter))
    assert moves(name, "strength")
    estimator = {"name": name, "strength": {"name": "linear", "start": 0.5, "stop": 2.0}}
    settings = WeightQuantization.model_validate({"bits": 4, "estimator": estimator})
    made, slopes = FakeQuantize(settings, IntegerGrid(4, "narrow")), []
    for progress in (0.0, 0.5, 1.0):
        made.set_progress(progress)
        x = torch.zeros(1, requires_grad=True)
        made.round_to_grid(x).backward()
        assert x.grad is not None
        slopes.append(float(x.grad))
    np.testing.assert_allclose(slopes, [0.5, 1.25, 2.0], rtol=1e-6)

    for wrong in ("abc", True, [1.0], float("nan")):
        section = {"weights": {"bits": 4, "estimator": {"name": name, "strength": wrong}}}
        with pytest.raises(RecipeError, match=r"weights\.estimator\.strength: .* is not (a|more)"):
            check(Quantization, section, "q")


def test_annotations_may_be_put_off(tmp_path: Path) -> None:
    text = "from __future__ import annotations\n" + SOFT.replace("=1.0", ": float = 1.0")
    name = load(tmp_path, text)
    assert ESTIMATORS.problems(name, {"strength": "x"}) == [("strength", "'x' is not a number")]


def test_an_unknown_parameter_is_named_with_the_near_miss(tmp_path: Path) -> None:
    name = load(tmp_path, SOFT)
    section = {"weights": {"bits": 4, "estimator": {"name": name, "strenght": 1.0}}}
    with pytest.raises(RecipeError, match=r"has no parameter strenght; did you mean strength\?"):
        check(Quantization, section, "q")


def test_a_missing_file_is_named_and_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_estimator("my.py:soft", tmp_path)
    path = tmp_path / "my.py"
    assert str(caught.value) == f"{path}: no such file; an estimator lies beside its recipe"


@pytest.mark.parametrize("name", ["a/my.py:soft", "../my.py:soft", "/tmp/my.py:soft"])
def test_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a file beside the recipe, without folders"):
        load_estimator(name, tmp_path)


ZERO = "def soft(grad, u, low, high):\n    scale = 0\n    return grad / (1 / scale)\n"
# what is wrong -> (the file, the message after the file's path)
WRONG: dict[str, tuple[str, str]] = {
    "near miss": (SOFT.replace("soft", "sotf"), ": has no function soft; did you mean sotf?"),
    "no function at all": ("x = 1\n", ": has no function soft"),
    "no function but a number": ("soft = 1\n", ": has no function soft"),
    "not Python": (f"{SOFT}\ndef (:\n", ":5: not Python: invalid syntax"),
    "a zero byte": (f"{SOFT}\0", ":1: not Python: source code string cannot contain null bytes"),
    "fails at the top": ("import nowhere_to_be_found\n", ":1: ModuleNotFoundError: No module"),
    "leaves at the top": ("import sys\nsys.exit(0)\n", ":2: SystemExit: 0"),
    "leaves inside": (
        "def soft(grad, u, low, high):\n    raise SystemExit\n",
        ":2: SystemExit: no",
    ),
    "fails inside": (ZERO, ":3: ZeroDivisionError: division by zero"),
    "fails in two lines": (
        "def soft(grad, u, low, high):\n    raise ValueError('one\\ntwo')\n",
        ":2: ValueError: one",
    ),
    "fails without end": (
        "def soft(grad, u, low, high):\n    return soft(grad, u, low, high)\n",
        ":2: RecursionError: maximum recursion depth exceeded",
    ),
    "too few arguments": (
        "def soft(grad, u):\n    return grad\n",
        ":1: soft must take grad, u, low",
    ),
    "too many arguments": (
        SOFT.replace("*, ", ""),
        ":2: soft must take grad, u, low, high, and its own parameters after a *: (grad, u, low, "
        "high, *, parameter=1.0)",
    ),
    "unnamed arguments": ("def soft(*all):\n    return all[0]\n", ":1: soft must name its param"),
    "unnamed parameters": (
        "def soft(grad, u, low, high, **more):\n    return grad\n",
        ":1: soft must name its parameters",
    ),
    "another shape": (
        "def soft(grad, u, low, high):\n    return grad[:2]\n",
        ":1: soft returned the shape [2]; u has [24]",
    ),
    "no tensor": (
        "def soft(grad, u, low, high):\n    return 1.0\n",
        ":1: soft returned float, not a tensor",
    ),
    "nothing": (
        "def soft(grad, u, low, high):\n    grad * 2\n",
        ":1: soft returned NoneType, not a tensor",
    ),
    "a mask": (
        "def soft(grad, u, low, high): return (u > low) & (u < high)",
        ":1: soft returned torch.bool; u is torch.float32",
    ),
    "whole numbers": (
        "def soft(grad, u, low, high): return grad.long()",
        ":1: soft returned torch.int64; u is torch.float32",
    ),
    "no number": (
        "def soft(grad, u, low, high): return grad * u.sqrt()",
        ":1: soft returned nan at u = -3",
    ),
    "infinity": (
        "def soft(grad, u, low, high): return grad * (u > 2.9).float().log().neg()",
        ":1: soft returned inf at u = -3",
    ),
    "another device": (
        "def soft(grad, u, low, high): return grad.to('meta')",
        ":1: soft returned a tensor on meta; u is on cpu",
    ),
    "changes its gradient": (
        "def soft(grad, u, low, high):\n    return grad.mul_(2)\n",
        ":1: soft changes grad or u in place; return a new tensor",
    ),
    "changes the steps": (
        "def soft(grad, u, low, high):\n    u -= 1\n    return grad * u\n",
        ":1: soft changes grad or u in place; return a new tensor",
    ),
    "a type nobody knows": (
        SOFT.replace("strength=", "strength: 'Foo' ="),
        ":2: soft has a parameter strength whose type is no type of a number; write "
        "strength: float = 1.0",
    ),
    "a type that cannot be checked": (
        f"class Foo:\n    pass\n{SOFT.replace('strength=', 'strength: Foo =')}",
        ":4: soft has a parameter strength whose type is no type of a number",
    ),
}


@pytest.mark.parametrize(("text", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_shown_with_the_users_file_and_line(
    text: str, why: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'my.py'}{why}")


def test_the_trial_uses_the_recipes_own_parameters(tmp_path: Path) -> None:
    text = "def soft(grad, u, low, high, *, strength=1.0):\n    return grad * (1 // strength)\n"
    load(tmp_path, text, strength=2)
    assert refusal(tmp_path, text, strength=0).endswith(
        ":2: ZeroDivisionError: integer division or modulo by zero"
    )


def test_a_mistake_that_shows_only_later_is_the_users_too(tmp_path: Path) -> None:
    text = "def soft(grad, u, low, high):\n    assert len(u) < 99, 'too long'\n    return grad\n"
    name = load(tmp_path, text)
    settings = WeightQuantization.model_validate({"bits": 4, "estimator": name})
    made = FakeQuantize(settings, IntegerGrid(4, "narrow"))
    x = torch.zeros(99, requires_grad=True)
    expected = re.escape(f"{tmp_path / 'my.py'}:2: AssertionError: too long")
    with pytest.raises(RecipeError, match=expected):
        made.round_to_grid(x).sum().backward()


def test_estimators_are_found_on_both_sides_and_in_overrides() -> None:
    section = {
        "weights": {"bits": 4, "estimator": "my.py:a"},
        "activations": {"bits": 4, "estimator": {"name": "my.py:b", "k": 2.0}},
        "overrides": [
            {"match": "x", "weights": None},
            {
                "match": "y",
                "weights": {"estimator": "relu"},
                "activations": {"estimator": "o.py:c"},
            },
        ],
    }
    assert [use[:3] for use in used_by(section)] == [
        ("quantization.weights.estimator", "my.py:a", {}),
        ("quantization.activations.estimator", "my.py:b", {"k": 2.0}),
        ("quantization.overrides.1.activations.estimator", "o.py:c", {}),
    ]


@pytest.mark.parametrize(
    "section",
    [None, 5, [], {"weights": 3}, {"overrides": 5}, {"overrides": [7, None]}, {"weights": {}}],
    ids=str,
)
def test_a_section_that_is_wrong_in_other_ways_holds_none(section: Any) -> None:
    assert list(used_by(section)) == []


def test_two_functions_of_one_file_have_one_hash(tmp_path: Path) -> None:
    text = SOFT + SOFT.replace("soft", "hard")
    for function in ("soft", "hard"):
        load(tmp_path, text, function)
    section = {
        "weights": {"estimator": "my.py:soft"},
        "activations": {"estimator": "my.py:hard"},
    }
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert sources_of_estimators({"quantization": section}) == {"my.py": digest}


def section(*names: Any) -> dict[str, Any]:
    """Return a quantization section whose sides, and an override, take these estimators."""
    weights, inputs, override = (*names, *["identity"] * 3)[:3]
    return {
        "weights": {"bits": 4, "estimator": weights},
        "activations": {"bits": 4, "place": "layer_inputs", "estimator": inputs},
        "overrides": [{"match": "0", "weights": {"estimator": override}}],
    }


def test_from_python_an_estimator_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(SOFT)
    name = f"{tmp_path / 'my.py'}:soft"
    chosen = {"name": name, "strength": 0.5}
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    layer = qtool.prepare(model, section("identity", "identity", chosen))[0]
    plain = qtool.prepare(model, section())[0]
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for made in (layer, plain):
        made(x).sum().backward()
    assert torch.equal(layer.weight.grad, 0.5 * plain.weight.grad)
    assert list(sources_of_estimators({"quantization": section(name)})) == ["my.py"]


def test_from_python_a_relative_path_is_refused_with_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unread.py").write_text(SOFT)
    monkeypatch.chdir(tmp_path)
    names = "unread.py:soft", {"name": "unread.py:soft", "strength": 2.0}, "in/unread.py:hard"
    with pytest.raises(RecipeError) as caught:
        qtool.prepare(nn.Linear(3, 2), section(*names))
    says = "is a relative path; from Python give the absolute one"
    assert str(caught.value).splitlines() == [
        "quantization: 3 problems",
        f"  weights.estimator: unread.py:soft {says}, {tmp_path}/unread.py:soft",
        f"  activations.estimator: unread.py:soft {says}, {tmp_path}/unread.py:soft",
        f"  overrides.0.weights.estimator: in/unread.py:hard {says}, {tmp_path}/in/unread.py:hard",
    ]
    assert "unread.py:soft" not in ESTIMATORS


def test_from_python_an_estimator_that_a_recipe_has_loaded_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = load(tmp_path, SOFT)
    monkeypatch.chdir(tmp_path.parent)
    made = qtool.prepare(nn.Sequential(nn.Linear(3, 2)), section("identity", "identity", name))
    assert "4 bits, narrow, learned, my.py:soft" in repr(made)


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, ": no such file; give the path of a Python file"), ("x = 1", ": has no function soft")],
)
def test_from_python_a_mistake_is_shown_with_the_users_file_too(
    text: str | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        qtool.prepare(nn.Linear(3, 2), section(f"{path}:soft"))
    assert str(caught.value) == f"{path}{why}"
