"""The network of two linear layers: what it computes, what trains, and where it starts."""

import math

import numpy as np
import pytest
import torch

from qtool.errors import RecipeError
from qtool.models.papers import MODELS
from qtool.models.two_layers import begin_near_spurious_minimum, shape_of_input
from qtool.models.vision import build_model
from qtool.numerics.coarse_gradient import spurious_minimum
from qtool.training.optimizers import parameter_groups


def teacher(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(rows, generator=generator, dtype=torch.float64)
    w = torch.randn(columns, generator=generator, dtype=torch.float64)
    return v - v.mean() + 0.1, w / w.norm()


def test_rows_share_the_first_layer_and_have_weights_of_their_own_in_the_second() -> None:
    model = MODELS.build("two_linear_layers", rows=3, columns=4, hidden=2)(5, 1, 4)
    x = torch.randn(6, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = x.numpy()[:, 0]
    w, v = (model.get_parameter(f"{name}.weight").detach().numpy() for name in ("first", "second"))
    expected = np.zeros((6, 5))
    for row in range(3):
        for j in range(2):
            expected += np.maximum(rows[:, row] @ w[j], 0)[:, None] * v[:, 2 * row + j]
    assert sum(p.numel() for p in model.parameters()) == 2 * 4 + 5 * 6
    np.testing.assert_allclose(model(x).detach().numpy(), expected, atol=1e-5)


def test_a_fixed_output_gives_each_class_its_own_neurons_and_never_trains() -> None:
    model = MODELS.build("two_linear_layers", columns=7, hidden=6, output="fixed")(3, 1, 7)
    fixed = model.get_parameter("second.weight")
    expected = [[0.5 if j // 2 == label else 0.0 for j in range(6)] for label in range(3)]
    assert fixed.tolist() == expected
    assert not fixed.requires_grad
    given = [id(p) for group in parameter_groups(model) for p in group["params"]]
    assert given == [id(model.get_parameter("first.weight"))]


def test_neurons_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"7 neurons out among 3 classes; set model\.hidden"):
        MODELS.build("two_linear_layers", columns=7, hidden=7, output="fixed")(3, 1, 7)


def test_data_of_another_size_are_refused() -> None:
    model = MODELS.build("two_linear_layers", rows=2, columns=7)(1, 1, 7)
    with pytest.raises(RecipeError, match=r"rows \* columns = 14 values, and the data have 784"):
        model(torch.zeros(1, 1, 28, 28))


def test_weights_start_normal_with_the_spread_that_is_asked_for() -> None:
    torch.manual_seed(0)
    build = MODELS.build("two_linear_layers", columns=500, hidden=40, initial_std=0.2)
    first = build(10, 1, 500).get_parameter("first.weight").detach()
    assert float(first.std()) == pytest.approx(0.2, rel=0.02)
    assert float(first.mean()) == pytest.approx(0.0, abs=0.01)


def test_a_start_near_the_spurious_minimum_is_at_the_angle_it_says() -> None:
    v_star, w_star = teacher(10, 8)
    model = MODELS.build("two_linear_layers", rows=10, columns=8)(1, 1, 8)
    begin_near_spurious_minimum(model, v_star, w_star)
    w = model.get_parameter("first.weight").detach().double().flatten()
    v = model.get_parameter("second.weight").detach().double().flatten()
    found = spurious_minimum(v_star, w_star)
    assert found is not None
    assert float(w.norm()) == pytest.approx(1.0, abs=1e-6)
    assert math.acos(float(w @ w_star)) == pytest.approx(math.pi - 0.05, abs=1e-5)
    torch.testing.assert_close(v, found[0], rtol=0, atol=1e-6)


def test_a_teacher_without_spurious_minimum_is_refused() -> None:
    _, w_star = teacher(10, 8)
    model = MODELS.build("two_linear_layers", rows=10, columns=8)(1, 1, 8)
    with pytest.raises(RecipeError, match=r"no spurious minimum.*with_spurious_minimum"):
        begin_near_spurious_minimum(model, torch.ones(10, dtype=torch.float64), w_star)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("lenet5", {}, [1, 28, 28]),
        ("two_linear_layers", {"columns": 28}, [1, 1, 28]),
        ("two_linear_layers", {"rows": 4, "columns": 7}, [1, 4, 7]),
    ],
)
def test_the_shape_of_the_input_follows_from_the_architecture(name, params, expected) -> None:
    built = build_model(name, 10, 1, 28, **params)
    assert shape_of_input(built.architecture) == expected
    assert built.model(torch.zeros(2, *expected)).shape == (2, 10)
