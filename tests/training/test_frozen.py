"""Parts that do not train stay as they are, to the last bit, and the others train on."""

import pytest
import torch
from torch import nn

import qtool
from qtool.training.batch_norm import reestimate_batch_norm
from qtool.training.frozen import freeze, freeze_problems, still_norms
from qtool.training.loop import Trainer
from qtool.training.losses import cross_entropy
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from tests.kit import float_net

PLACES = ["layer_inputs", "every_value"]
DECIDED = ("tracker", "_extra_state")  # what is noted of a weight, and no part of what it computes

TAKEN_OUT = ("conv2.bias",)  # by the norm behind it: its gradient is rounding, or 0, by the kernel


class Rows:
    """Two batches of images of 5 classes."""

    def __len__(self):
        return 2

    def batches(self, epoch, start=0):
        for seed in range(2)[start:]:
            generator = torch.Generator().manual_seed(seed)
            images = torch.randn(10, 3, 8, 8, generator=generator)
            yield images, torch.arange(10) % 5


def trained(patterns, place):
    """Return the state before and after an epoch whose optimizer moves all that it has."""
    data = Rows()
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": place}}
    model = qtool.prepare(float_net(), section, next(data.batches(0))[0]).train()
    freeze(model, patterns)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(
        model=model,
        train=data,
        validation=data,
        loss=cross_entropy,
        optimizer=OPTIMIZERS.build("sgd", weight_decay=0.1)(parameter_groups(model), 0.05),
        learning_rate=lambda progress: 0.05,
        device=torch.device("cpu"),
        precision=torch.float32,
        epochs=1,
        history=[],
        still=still_norms(model, patterns),
    )
    trainer.fit(lambda line: None)
    return state, model


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("patterns", [["conv1", "bn1"], ["*1"], ["fc", "*2"]], ids=str)
def test_what_is_frozen_stays_and_all_else_trains(patterns, place):
    before, model = trained(patterns, place)
    frozen = {"conv1", "bn1"} if patterns != ["fc", "*2"] else {"conv2", "bn2", "fc"}
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == (
        frozen
    )
    moved = 0
    for name, value in model.state_dict().items():
        if not any(part in name for part in DECIDED):
            still, kept = name.split(".")[0] in frozen, torch.equal(value, before[name])
            if still or name not in TAKEN_OUT:
                assert kept == (still or not moves(name)), name
            moved += not kept
    assert moved > 4


def moves(name):
    """Tell whether training moves what a state_dict holds under a name; images keep their scale."""
    return name != "sites.input0.scale" and not name.endswith(("zero_point", "alpha", "observed"))


def test_frozen_norms_keep_their_statistics_when_the_others_are_estimated_again():
    _, model = trained(["bn1"], "layer_inputs")
    before = model.bn1.running_mean.clone(), model.bn2.running_mean.clone()
    images = (x for x, _ in Rows().batches(0))
    reestimate_batch_norm(model, images, still=still_norms(model, ["bn1"]))
    assert torch.equal(model.bn1.running_mean, before[0])
    assert not torch.equal(model.bn2.running_mean, before[1])


def test_a_pattern_with_dots_names_what_is_inside():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    assert freeze_problems(net, ["0"]) == []
    assert still_norms(net, ["0.*"]) == [net[0][1]]
    freeze(net, ["0.0"])
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == [
        "0.0.weight",
        "0.0.bias",
    ]
    assert "'0.2' matches no module" in freeze_problems(net, ["0.2"])[0][1]
