"""Networks of timm from prepare to the gate; their batch norms are folded."""

import os
from pathlib import Path

import pytest

from tests.zoo import sweep
from tests.zoo.published import timm_networks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("setting", sweep.SETTINGS)
def test_every_network_comes_through(setting: str, tmp_path: Path) -> None:
    """Go on where QTOOL_SWEEP, a file of JSON lines, stops."""
    pytest.importorskip("timm")
    results = Path(os.environ.get("QTOOL_SWEEP", tmp_path / "sweep.jsonl"))
    sweep.run(["timm/"], results, [setting])
    found = {
        name: one
        for (name, at), one in sweep.read(results).items()
        if at == setting and name.startswith("timm/")
    }
    assert len(found) == len(timm_networks()) >= 25
    bad = {n: sweep.said(one) for n, one in found.items() if one["outcome"] != "right"}
    assert bad == {}
