"""Every network of the zoo comes out right, or is refused by name before it is trained."""

from pathlib import Path

import pytest

from tests.zoo.harness import judge
from tests.zoo.networks import KINDS, NETWORKS

EXPORTED = [name for name, network in NETWORKS.items() if network.position < 2]
REFUSED = frozenset(
    f"parametrized-{name}"  # a weight that something makes anew in each pass
    for name in (
        *("pruned", "weight_norm", "older_weight_norm", "spectral_norm", "older_spectral_norm"),
        "parametrization_of_ones_own",
    )
)
NORM = "a norm stays float, and nothing says so"
OWN = "a weight that is also used without its layer"
NEVER = "a layer that evaluation never calls"
AXIS = "a norm over another axis than the layer's channels is folded"
SEVERAL = "export with several inputs"
HOOK = "a hook changes what a layer reads or makes"
OPEN: dict[str, str] = {
    "aliased-block_in_two_parents": NORM,
    "attention-transformer_encoder_layer": OWN,
    "attention-transformer_encoder": OWN,
    "control_flow-head_that_training_alone_calls": NEVER,
    "control_flow-layer_that_evaluation_alone_calls": NEVER,
    "control_flow-branch_by_shape": NEVER,
    "control_flow-AsDeepAsAsked": NORM,
    "in_place-scaled_in_place_before_the_norm": NORM,
    "in_place-slice_written_before_the_norm": NORM,
    "in_place-view_changed_before_the_norm": NORM,
    "in_place-shape_changed_in_place": NEVER,
    "inputs-OptionalSecond": NEVER,
    "inputs-LeftAndRight": SEVERAL,
    "inputs-ImageAndNumbers": SEVERAL,
    "norms-synchronized": NORM,
    "norms-frozen": NORM,
    "norms-without_statistics": NORM,
    "norms-of_groups_and_instances": NORM,
    "norms-BeforeTheConvolution": NORM,
    "norms-of_tokens_that_are_as_many_as_features": AXIS,
    "parametrized-hooks_that_change_values": HOOK,
    "shared-TiedTransposed": OWN,
    "shared-siamese": NORM,
    "shared-one_block_at_two_scales": NORM,
    "shared-one_convolution_two_norms": NORM,
}

pytestmark = pytest.mark.filterwarnings("default")  # torch has its own to say of some networks


def listed(names: list[str]) -> list[object]:
    """Return names as parameters; those with an open fault have to fail."""
    marked = [(n, pytest.mark.xfail(strict=True, reason=OPEN[n])) for n in names if n in OPEN]
    return [n for n in names if n not in OPEN] + [pytest.param(n, marks=m) for n, m in marked]


def test_there_are_ten_networks_of_each_of_twelve_kinds() -> None:
    assert [len(of_kind) for of_kind in KINDS.values()] == [10] * 12
    assert len(NETWORKS) == 120
    assert len(REFUSED) <= 15


@pytest.mark.parametrize("name", listed([n for n in NETWORKS if n not in EXPORTED]))
def test_a_network_is_trained_and_converted(name: str) -> None:
    verdict = judge(NETWORKS[name])
    assert verdict.outcome == ("refused" if name in REFUSED else "right"), verdict.why


@pytest.mark.parametrize("name", listed(EXPORTED))
def test_a_network_is_trained_converted_and_exported(name: str, tmp_path: Path) -> None:
    verdict = judge(NETWORKS[name], path=tmp_path / "model.onnx")
    assert verdict.outcome == ("refused" if name in REFUSED else "right"), verdict.why


@pytest.mark.slow
@pytest.mark.parametrize("name", listed([n for n in NETWORKS if n not in EXPORTED]))
def test_every_network_is_exported(name: str, tmp_path: Path) -> None:
    verdict = judge(NETWORKS[name], path=tmp_path / "model.onnx")
    assert verdict.outcome == ("refused" if name in REFUSED else "right"), verdict.why
