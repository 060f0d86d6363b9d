"""What the plan and `print(model)` say of values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.quantizers.plan import plan
from qtool.quantizers.plan_sites import plan_sites

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Two branches that are concatenated, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.right, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu6(self.norm(self.left(x))), F.relu6(self.right(x))], 1)
        return self.last(y) + x


class Net(nn.Module):
    """A block between layers, and a product with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 3), Block(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(F.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1) * 2)


def prepared(**activations: object) -> nn.Module:
    torch.manual_seed(0)
    inputs = {"bits": 4, "place": "every_value", "range": "half_normal"} | activations
    return qtool.prepare(Net().eval(), {"weights": {"bits": 4}, "activations": inputs}, IMAGES)


def test_every_value_says_what_makes_and_reads_it_and_its_grid() -> None:
    rows = {row.site: row.to_json() for row in plan_sites(prepared())}
    how = "half_normal, straight_through"
    changed = "range learned, since half_normal is for values that are never below 0"
    assert rows[":relu0"] == {
        "site": ":relu0",
        "made_by": "stem + relu",
        "read_by": ["block.left", "block.right"],  # and a sum that stays float
        "grid": "8-bit unsigned",
        "how": how,
        "rounded_again_by": ["block.left", "block.right"],
    }
    assert rows["block:clip0"] == {
        "site": "block:clip0",
        "made_by": "block.left + block.norm + clip",
        "read_by": ["block:cat0"],
        "grid": "8-bit unsigned",
        "how": how,
        "top": 6.0,
    }
    assert rows["block:cat0"] == {
        "site": "block:cat0",
        "made_by": "cat",
        "read_by": ["block.last"],
        "grid": "8-bit unsigned",
        "how": how,
        "group": "block:clip0",
        "join": "cat",
        "rounded_again_by": ["block.last"],
    }
    assert rows["block:conv2d2"]["note"] == changed
    assert rows["block:conv2d2"]["how"] == "learned, straight_through"
    assert list(rows)[-3:] == [":mul0", "block:add0", ":avg_pool0"]


def test_what_stays_float_says_why_and_what_would_change_it() -> None:
    rows = {row.site: row for row in plan_sites(prepared()) if row.grid == "float"}
    assert {name: row.why for name, row in rows.items()} == {
        ":mul0": "it takes a number or a parameter, which is on no grid",
        "block:add0": "no quantized layer reads what it makes, nor anything else in integers",
        ":avg_pool0": "no quantized layer reads what it makes, nor anything else in integers",
    }
    assert rows[":mul0"].advice == "nothing: such sums and products are float"


def test_places_at_layers_have_no_values_to_show() -> None:
    assert plan_sites(prepared(place="layer_inputs")) == []


def test_a_printed_model_tells_of_its_sites() -> None:
    text = str(prepared())
    how = "8 bits, unsigned, half_normal, straight_through"
    assert f"(relu0): SiteQuantizer({how}, of stem + relu, for block.left, block.right)" in text
    assert "(clip1): SharedSite(as block:clip0, of block.right + clip, for block:cat0)" in text
    assert "(cat0): SharedSite(as block:clip0, of cat, for block.last)" in text


def test_layers_show_the_grid_that_they_read() -> None:
    rows = {row.name: row.activations for row in plan(prepared())}
    assert (rows["stem"], rows["block.left"]) == ("8-bit full", "4-bit unsigned")
    assert rows["block.last"] == "4-bit unsigned"
