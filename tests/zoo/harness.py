"""From a network of the zoo to a verdict: right, refused, silent (wrong and not said) or raw."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import qtool
from qtool.errors import QtoolError
from qtool.graph.rewritten import rewrite, rewritten_in
from qtool.limits import LIMITS
from tests.zoo.coverage import leftovers, unnamed_norms, unnamed_weights
from tests.zoo.evaluation import fake_meaning, integer_meaning, load_trained, wrong_tensors
from tests.zoo.network import Form, Inputs, Network

RECIPE: dict[str, object] = {
    "weights": {"bits": 4},
    "activations": {"bits": 8, "place": "layer_inputs"},
}
ROWS, EVALUATED, STEPS = 8, 64, 3


@dataclass(frozen=True)
class Verdict:
    """What became of a network, and what is wrong."""

    outcome: Literal["right", "refused", "silent", "raw"]
    why: str = ""


def call(model: nn.Module, inputs: Inputs) -> object:
    """Return what a model makes of its inputs."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors(output: object) -> list[Tensor]:
    """Return the tensors in an output, dataclasses too, in order."""
    if is_dataclass(output):
        return [t for item in fields(output) for t in tensors(getattr(output, item.name))]
    if isinstance(output, dict):
        return [t for item in output.values() for t in tensors(item)]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run models in evaluation, without gradients and without shortcuts through float weights."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def train(model: nn.Module, network: Network) -> None:
    """Take a few steps of gradient descent."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for step in range(STEPS):
        made = tensors(call(model, network.inputs(ROWS, step)))
        optimizer.zero_grad()
        loss_of(made, network.form).backward()
        optimizer.step()


def loss_of(made: list[Tensor], form: Form) -> Tensor:
    """Return cross-entropy of logits, or the square of other values."""
    if form == "values":
        return torch.stack([(t - 0.3).square().mean() for t in made]).sum()
    labels = [torch.arange(len(t)) % t.shape[1] for t in made]
    return torch.stack([F.cross_entropy(t, y) for t, y in zip(made, labels, strict=True)]).sum()


def disagreement(expected: object, given: object, form: Form, *, exact: bool) -> str:
    """Return how two outputs differ by more than the contract allows, or "".

    Args:
        expected, given: tensors in the same places.
        form: whether they are logits.
        exact: the two compute with the same integers, so that nothing but the order of sums may
            differ; otherwise biases in steps of int32 may move values over rounding thresholds.
    """
    pairs = [tensors(expected), tensors(given)]
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[1])} outputs instead of {len(pairs[0])}"
    for one, other in zip(*pairs, strict=True):
        if one.shape != other.shape:
            return f"shape {list(other.shape)} instead of {list(one.shape)}"
        if not bool(torch.isfinite(other).all()):
            return "an output is not finite"
        a, b = one.double().flatten(1), other.double().flatten(1)
        sigma, off = float(a.std()), typical(a - b, form, exact=exact)
        agree, clear = same_class(a, b, sigma) if form == "logits" else (1.0, 0.0)
        if agree < 0.98:
            return f"the top class agrees on {agree:.3f}"
        if off > 0.1 * sigma + 1e-6 and (exact or clear < 0.5):
            return f"off by {off:.3g}, {off / max(sigma, 1e-9):.3g} sigma"
    return ""


def typical(difference: Tensor, form: Form, *, exact: bool) -> float:
    """Return how far outputs [N, K] lie apart: the median row for logits, else all of them."""
    if form == "logits":
        return float(difference.abs().amax(1).median())
    return float(difference.abs().max() if exact else difference.square().mean().sqrt())


def same_class(a: Tensor, b: Tensor, sigma: float) -> tuple[float, float]:
    """Return the agreement on rows whose two best logits lie apart, and the share of these."""
    best = a.topk(min(2, a.shape[1]), 1).values
    clear = best[:, 0] - best[:, -1] >= 0.1 * sigma
    equal = (a.argmax(1) == b.argmax(1))[clear].double()
    return float(equal.mean()) if bool(clear.any()) else 1.0, float(clear.double().mean())


def judge(
    network: Network,
    recipe: dict[str, object] = RECIPE,
    path: Path | None = None,
    *,
    rounds_biases: bool = True,
) -> Verdict:
    """Prepare, train and convert a network; export it to `path` where one is given.

    Whatever stops it before training is a refusal where it names a module or its type in words of
    the table of known limits; everything that stops it later is raw.
    """
    model, example = network.build(), network.inputs(ROWS, 7)
    try:
        prepared = qtool.prepare(model, recipe, example=example)
    except (ValueError, QtoolError) as error:
        refused = names_a_module(str(error), model) and is_listed("refused", str(error))
        return Verdict("refused" if refused else "raw", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Verdict("raw", f"prepare: {type(error).__name__}: {first_line(error)}")
    try:
        train(prepared, network)
        if rounds_biases:
            qtool.round_biases(prepared.eval())
        integer = qtool.convert(prepared.eval())
    except Exception as error:
        return Verdict("raw", f"after prepare: {type(error).__name__}: {first_line(error)}")
    try:
        faults = faults_of(network, prepared, integer, recipe)
    except Exception as error:
        return Verdict("raw", f"after convert: {type(error).__name__}: {first_line(error)}")
    if path is not None and not faults:
        try:
            faults = exported(network, integer, path)
        except Exception as error:
            return Verdict("raw", f"export: {type(error).__name__}: {first_line(error)}")
    return Verdict("silent", "; ".join(faults)) if faults else Verdict("right")


def is_listed(outcome: str, sentence: str) -> bool:
    """Tell whether a sentence is in the table of known limits."""
    return any(limit.outcome == outcome and limit.fits(sentence) for limit in LIMITS.values())


def unlisted(told: object) -> list[str]:
    """Return reasons of conversion that the table of known limits lacks."""
    said = [("left float", why) for why in told.left_float.values()]
    said += [("not folded", why) for why in told.not_folded.values()]
    return [f"no known limit: {why}" for outcome, why in said if not is_listed(outcome, why)]


def first_line(error: Exception) -> str:
    """Return how a message begins."""
    return str(error).strip().partition("\n")[0][:300]


def names_a_module(message: str, model: nn.Module) -> bool:
    """Tell whether a message has the name or the type of a module."""
    words = set(re.findall(r"[\w.]+", message.replace(". ", " ")))
    names = {name for name, _ in model.named_modules() if name}
    return bool(words & (names | {type(module).__name__ for module in model.modules()}))


def faults_of(
    network: Network, prepared: nn.Module, integer: nn.Module, recipe: dict[str, object]
) -> list[str]:
    """Return everything that is wrong with what conversion made and said."""
    batch, told = network.inputs(EVALUATED, 11), integer.qtool
    state = prepared.state_dict()
    rules = {spec.name: rule_of(recipe) for spec in told.layers}
    plain, trained, meant, fake, given = (network.build() for _ in range(5))
    for model in (plain, trained, meant, fake):  # layers that prepare lets it call have names
        rewrite(model, rewritten_in(prepared))
    try:
        for model in (trained, meant, fake):
            load_trained(model, state)
    except RuntimeError as error:
        return [f"what was trained is not the network's: {first_line(error)}"]
    faults = leftovers(integer) + unlisted(told)
    with evaluating(plain, trained, meant, fake, given):
        if why := disagreement(call(given, batch), call(plain, batch), network.form, exact=True):
            faults.append(f"rewritten: {why}")
        call(trained, batch)  # makes the weights that hooks make
        faults += wrong_tensors(trained, state, integer, rules)
        faults += unnamed_weights(plain, lambda: call(plain, batch), told)
        faults += unnamed_norms(plain, lambda: call(plain, batch), told)
        expected = call(fake_meaning(fake, state, told, rules), batch)
        counted = call(integer_meaning(meant, integer), batch)
    with torch.no_grad():
        given, trained_for = call(integer, batch), call(prepared.eval(), batch)
    for what, one, other, exact in (
        ("fake-quantized", expected, trained_for, True),
        ("integer", counted, given, True),
        ("converted", trained_for, given, False),
    ):
        if why := disagreement(one, other, network.form, exact=exact):
            faults.append(f"{what}: {why}")
    return faults


def rule_of(recipe: dict[str, object]) -> str:
    """Return the name of the range of weights."""
    weights = recipe.get("weights")
    rule = weights.get("range", "") if isinstance(weights, dict) else ""
    return str(rule.get("name") if isinstance(rule, dict) else rule)


def exported(network: Network, integer: nn.Module, path: Path) -> list[str]:
    """Export an integer model and return where ONNX Runtime disagrees with it."""
    import onnxruntime  # here, so that the networks are judged without it

    example, batch = network.inputs(ROWS, 7), network.inputs(EVALUATED, 11)
    qtool.export_onnx(integer, example, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    if isinstance(batch, dict):
        given = {name: batch[name].numpy() for name in names}
    else:
        parts = batch if isinstance(batch, tuple) else (batch,)
        given = {n: np.ascontiguousarray(p) for n, p in zip(names, parts, strict=True)}
    with torch.no_grad():
        expected = call(integer, batch)
    made = [torch.from_numpy(array) for array in session.run(None, given)]
    why = disagreement(tensors(expected), made, network.form, exact=False)
    return [f"ONNX Runtime: {why}"] if why else []
