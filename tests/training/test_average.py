"""The average of a model over its steps: what it is of, and that training does not notice it."""

import pytest
import torch

from qtool.evaluation import evaluate
from qtool.quantizers.control import without_blends
from qtool.training.average import Average
from tests.training.test_loop import trainer

DECAY = 0.9
KEPT = ("tracker", "alpha", "num_batches_tracked", "_extra_state")  # of the newest weights
BLEND = {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 0.5]}


def states_of(run):
    """Train, and return the state_dict before and after each step."""
    seen = [copied(run.model)]
    take = run.plain_step()

    def step(images, labels):
        found = take(images, labels)
        seen.append(copied(run.model))
        return found

    run.step = step
    run.fit(lambda line: None)
    return seen


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("choices", [{}, {"blend": BLEND}, {"range": "absmax"}], ids=str)
def test_an_average_follows_its_formula_and_leaves_training_alone(choices):
    plain, run = trainer(**choices), trainer(**choices)
    run.average = Average(run.model, DECAY)
    states, alone = states_of(run), states_of(plain)
    assert len(states) == 13
    for name, value in states[-1].items():
        assert torch.equal(value, alone[-1][name]), name
    averaged = run.average.state()
    for name, first in states[0].items():
        assert (name not in averaged) == any(part in name for part in KEPT), name
        mean = first.double()
        for state in states[1:]:
            mean = DECAY * mean + (1 - DECAY) * state[name].double()
        if name in averaged:
            torch.testing.assert_close(averaged[name].double(), mean, rtol=1e-5, atol=1e-6)
    assert {"0.weight", "0.weight_quantizer.scale", "1.running_var", "3.bias"} <= averaged.keys()
    assert not torch.equal(averaged["0.weight"], states[-1]["0.weight"])


def test_the_average_is_judged_and_a_layer_that_saw_it_goes_on_with_its_own_weights():
    run = trainer(epochs=2)
    run.average = Average(run.model, DECAY)
    run.fit(lambda line: None)
    newest = copied(run.model)
    with run.as_judged():
        assert not torch.equal(run.model[0].weight, newest["0.weight"])
        with without_blends(run.model):
            score = evaluate(run.model.eval(), run.validation.batches(1), run.loss)
    assert run.history[-1].validation_loss == score.loss
    for name, value in newest.items():
        assert torch.equal(run.model.state_dict()[name], value), name


def test_what_is_finished_is_the_average():
    run = trainer(epochs=1)
    run.average = Average(run.model, DECAY)

    def finish(model):
        with torch.no_grad():
            model[3].bias.fill_(7.0)
        run.keep_finished()

    run.fit(lambda line: None, finish)
    assert bool((run.average.state()["3.bias"] == 7).all())
    assert not bool((run.model[3].bias == 7).any())


@pytest.mark.parametrize(
    "damaged",
    [None, {}, {"0.weight": torch.zeros(1)}, {"0.weight": torch.full((8, 2, 3, 3), float("nan"))}],
    ids=["missing", "empty", "of another shape", "not finite"],
)
def test_an_average_that_is_not_what_it_was_is_refused(damaged):
    average = Average(trainer().model, DECAY)
    given = damaged and average.state() | damaged
    with pytest.raises(ValueError, match="the average of"):
        average.restore(given)
