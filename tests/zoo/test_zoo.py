"""Every network of the zoo comes out right, or is refused by name before it is trained."""

from pathlib import Path

import pytest

from tests.zoo.harness import judge
from tests.zoo.networks import KINDS, NETWORKS

EXPORTED = [name for name, network in NETWORKS.items() if network.position < 1]
REFUSED = frozenset(
    f"parametrized-{name}"  # a weight that something makes anew in each pass
    for name in (
        *("pruned", "weight_norm", "older_weight_norm", "spectral_norm", "older_spectral_norm"),
        "parametrization_of_ones_own",
    )
)
OPEN: dict[str, str] = {}

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
