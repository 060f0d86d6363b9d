"""What a range says of itself in its decorator is all that the rest of qtool knows of it."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qtool
from qtool.errors import RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import DEFAULT, RANGES, RECOMMENDED, absmax
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.quantization import Quantization
from qtool.settings.section import check
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

ROOMS = Path(qtool.__file__).parent
BLEND = {"name": "cubic", "start": 0.0, "stop": 1.0}
W, A = "weights", "activations"
ACCEPTED: list[str] = []


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lists a range called `mine`, with facts, for this test."""
    monkeypatch.setattr(RANGES, "_members", dict(RANGES._members))
    monkeypatch.setattr(RANGES, "_facts", dict(RANGES._facts))

    def add(**facts: Any) -> None:
        def mine(
            rows: Tensor, grid: IntegerGrid, *, decay: float = 0.5, every: int = 3, l2: float = 0.25
        ) -> Tensor:
            del decay, every, l2
            return absmax(rows, grid)

        (RANGES.add(**facts) if facts else RANGES.add)(mine)

    return add


def problems(side: str, **keys: Any) -> list[str]:
    """Return what is said of a section whose range is `mine`."""
    try:
        check(Quantization, {side: {"bits": 4, "range": "mine"} | keys}, "q")
    except RecipeError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return ACCEPTED


def strings(path: Path) -> Iterator[str]:
    """Yield every string of a file that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in documentation:
            yield str(node.value)


@pytest.mark.parametrize("room", ["quantizers", "settings"])
def test_no_range_is_known_by_its_name(room: str) -> None:
    names = set(RANGES.names()) - {DEFAULT}  # which is a grid's name, too
    found = {
        (path.name, text)
        for path in sorted((ROOMS / room).rglob("*.py"))
        for text in strings(path)
        if names & set(text.replace(",", " ").split())
    }
    assert found == set()


def test_settings_know_no_layers() -> None:
    for path in sorted((ROOMS / "settings").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            elif not isinstance(node, ast.Import):
                continue
            assert not [n for n in names if f"{n}.".startswith("torch.nn.")], path


def test_a_range_that_says_nothing_is_for_both_sides_and_fitted_at_every_step(add: Any) -> None:
    add()
    assert problems(W) == problems(A) == problems(W, blend=BLEND) == ACCEPTED
    assert problems(A, grid="asymmetric") != ACCEPTED
    made = WeightQuantizer(weights(), torch.ones(2, 3))
    assert (made.ready, made.refits, made.refit_every, made.learns) == (True, True, 1, False)


def weights(**keys: Any) -> WeightQuantization:
    return WeightQuantization.model_validate({"bits": 4, "range": "mine"} | keys)


def inputs(**keys: Any) -> ActivationQuantizer:
    section = {"bits": 4, "range": "mine"} | keys
    return ActivationQuantizer(ActivationQuantization.model_validate(section))


def test_a_range_for_weights_is_refused_for_activations(add: Any) -> None:
    add(side="weights")
    assert problems(W) == ACCEPTED
    assert problems(A) == [
        "activations.range: mine is for weights; use learned or ema_min_max",
    ]


def test_a_range_for_activations_is_refused_for_weights(add: Any) -> None:
    add(side="activations")
    assert problems(A) == ACCEPTED
    assert problems(W) == [
        "weights.range: mine is for activations; use absmax or learned for weights"
    ]


@pytest.mark.parametrize("learns", ["scale", "clip"])
@pytest.mark.parametrize("side", [W, A])
def test_a_learned_range_excludes_a_blend_and_is_a_parameter(
    add: Any, learns: str, side: str
) -> None:
    add(learns=learns)
    assert problems(side, blend=BLEND) == [
        f"{side}.blend: excludes range: mine; choose absmax or mse"
    ]
    assert isinstance(inputs().scale, torch.nn.Parameter)


def test_a_learned_clip_has_a_gradient_of_its_own_with_the_decay_of_its_parameter(add: Any) -> None:
    add(learns="clip")
    assert problems(A, scale_gradient="chain_rule") == [
        "activations.scale_gradient: mine has a gradient of its own; leave this out"
    ]
    assert problems(A, rounding="additive_noise") == [
        "activations.range: mine excludes additive_noise; choose learned"
    ]
    gradients = []
    for l2 in (None, 1.0):
        made = inputs(grid="unsigned", range="mine" if l2 is None else {"name": "mine", "l2": l2})
        x = torch.linspace(0.0, 1.0, 9)
        made(x)
        made(x).sum().backward()
        assert made.scale.grad is not None
        gradients.append((float(made.scale.grad), float(made.scale.detach())))
    (usual, scale), (given, _) = gradients
    assert given - usual == pytest.approx((1.0 - 0.25) * scale)


def test_a_range_that_finds_a_zero_point_is_for_the_asymmetric_grid(add: Any) -> None:
    add(zero_point=True)
    assert problems(A, grid="asymmetric") == ACCEPTED
    assert problems(A, grid="asymmetric", range="absmax") == [
        "activations.grid: asymmetric needs range: ema_min_max, min_max, calibrated, mine or "
        "learned, which find a zero point"
    ]


def test_a_range_for_unsigned_grids_makes_every_grid_unsigned(add: Any) -> None:
    add(unsigned=True)
    assert problems(A, grid="full") == ["activations.range: mine is for grid: unsigned"]
    made = inputs()
    made(torch.tensor([-1.0, 1.0]))
    assert made.known_grid.kind == "unsigned"


def test_a_range_that_follows_looks_at_every_so_many_steps(add: Any) -> None:
    add(follows=True)
    made = inputs(grid="full").train()
    seen = []
    for largest in (1.0, 2.0, 4.0, 4.0, 4.0):  # the first value settles, then steps 1, 4, ...
        made(torch.tensor([0.0, largest]))
        seen.append(float(made.observed[1]))
    kept = 0.5**3
    second = kept * 1.0 + (1 - kept) * 2.0
    assert seen == pytest.approx([1.0, second, second, second, kept * second + (1 - kept) * 4.0])


@pytest.mark.parametrize(
    ("facts", "ready", "every"),
    [
        ({"costs": "sort"}, True, 100),
        ({"costs": "search"}, False, 100),
        ({"costs": "search", "refines": True}, False, 1),
    ],
)
def test_what_a_range_costs_decides_when_it_is_fitted(
    add: Any, facts: dict[str, Any], ready: bool, every: int
) -> None:
    add(**facts)
    made = WeightQuantizer(weights(), torch.ones(2, 3))
    assert (made.ready, made.refit_every) == (ready, every)
    assert WeightQuantizer(weights(refit_every=7), torch.ones(2, 3)).refit_every == 7


def test_a_range_that_is_given_is_fitted_once(add: Any) -> None:
    add(given=True)
    made = WeightQuantizer(weights(), torch.ones(2, 3)).train()
    before = made.scale.clone()
    made(torch.full((2, 3), 5.0, requires_grad=True))
    assert torch.equal(made.scale, before)


def test_a_range_that_squashes_is_handed_the_tanh_of_weights(add: Any) -> None:
    add(squashes=True)
    weight = torch.tensor([[0.5, -2.0]])
    made = WeightQuantizer(weights(), weight)
    assert torch.equal(
        made.before_rounding(weight), torch.tanh(weight) / torch.tanh(torch.tensor(2.0))
    )


def test_what_messages_recommend_is_accepted_there() -> None:
    for side in (W, A):
        for name in RECOMMENDED[side]:
            assert problems(side, range=name) == ACCEPTED
    for name in RECOMMENDED["blend"]:
        assert problems(W, range=name, blend=BLEND) == problems(A, range=name, blend=BLEND)
        assert problems(W, range=name, blend=BLEND) == ACCEPTED
    assert problems(A, range=DEFAULT, rounding="additive_noise") == ACCEPTED


def test_the_reference_names_the_ranges_that_are_not_fitted_at_every_step() -> None:
    said = WeightQuantization.model_fields["refit_every"].description or ""
    slow = {n for n in RANGES.names() if RANGES.facts(n).refit_every == 100}
    told = said.split("100 for ")[1].rstrip(".").replace(",", "").split()
    assert {n for n in RANGES.names() if n in told} == slow


def test_an_estimator_says_its_family_and_whether_it_serves_ceil(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ESTIMATORS, "_members", dict(ESTIMATORS._members))
    monkeypatch.setattr(ESTIMATORS, "_facts", dict(ESTIMATORS._facts))

    @ESTIMATORS.add(family="sign", serves_ceil=True)
    def mine(grad: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        del u, low, high
        return grad

    assert problems(W, range="absmax", estimator="mine") == [
        "weights.estimator: mine is for grids of two levels; set bits: 1"
    ]
    keys = {"range": "absmax", "estimator": "mine", "bits": 1, "grid": "unsigned"}
    assert problems(A, rounding="ceil", **keys) == ACCEPTED
    keys |= {"estimator": "tanh"}
    (line,) = problems(A, rounding="ceil", **keys)
    assert line.endswith("log_tailed_relu, mine")
