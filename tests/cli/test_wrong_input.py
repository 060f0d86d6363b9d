"""Wrong recipes, command lines and files: a clear message, exit code 2, and nothing is touched."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qtool import pipeline
from qtool.errors import InputError, RecipeError
from qtool.files.kinds import Kind, kind_named
from qtool.files.yaml_data import parse_yaml
from qtool.images.files import SUFFIXES as IMAGES
from qtool.models.weights import SUFFIXES as WEIGHTS_FILES
from qtool.recipe.early import early_problems
from qtool.recipe.file import check_recipe
from qtool.runs.built import build
from tests.kit import ABSENT, recipe, refused, write_recipe

LEARNED = {
    "data.augment": False,
    "quantization.weights.range": "learned",
    "quantization.activations.range": "learned",
    "quantization.overrides": [{"match": "conv1", "weights": {"bits": 8}}],
    "training.optimizer": {"name": "sgd"},
}


def recipe_with(**changes: Any) -> str:
    """Return the recipe with values at places; `__` walks into sections and lists."""
    named = {place.replace("__", "."): value for place, value in changes.items()}
    return yaml.safe_dump(recipe(LEARNED | named), sort_keys=False)


TAUGHT = {"training__teacher": {"name": "lenet5", "weights": "a.pt"}}


def replaced(old: str, new: str) -> str:
    text = recipe_with()
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a recipe that gets as far as data, a network or a run folder fail the test."""

    def too_far(*_: Any, **__: Any) -> None:
        raise AssertionError("the recipe should have been refused by now")

    for name in ("make_data", "make_network", "make_network_without_data"):
        monkeypatch.setattr(build, name, too_far)
    monkeypatch.setattr(pipeline, "pick_device", too_far)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained, converted and exported run, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("finished")
    pipeline.train(write_recipe(folder, LEARNED), run_dir=folder / "run", device="cpu")
    pipeline.export(folder / "run")
    return folder / "run"


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run as `run`, beside its recipe `r.yaml`."""
    write_recipe(tmp_path, LEARNED)
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


CUBIC = {"name": "cubic", "start": 0.0, "stop": 1.0}
RATE = {"name": "linear", "start": 0.1, "stop": 0.0}
RISING = {"name": "linear", "start": 0.5, "stop": 1.5}
WEIGHTS = "quantization.weights"
SIDE = {"bits": 4, "range": "absmax"}
LAUGHS = "".join(f"b{k}: &b{k} [{', '.join([f'*b{k - 1}'] * 9)}]\n" for k in range(1, 9))

# what is wrong -> (recipe, the place, words of the message there)
WRONG_VALUES: dict[str, tuple[str, str, str]] = {
    "seed is text": (recipe_with(seed="x"), "seed", "'x' is not a whole number"),
    "seed is negative": (recipe_with(seed=-1), "seed", "-1 is less than 0"),
    "seed is a date": (replaced("seed: 0", "seed: 2020-01-01"), "seed", "is not a whole number"),
    "seed of 6000 digits": (
        replaced("seed: 0", f"seed: 0x{'f' * 5000}"),
        "seed",
        "a number of thousands of digits is not less than 2147483648",
    ),
    "bits 0": (recipe_with(quantization__weights__bits=0), f"{WEIGHTS}.bits", "0 is less than 1"),
    "bits 9": (recipe_with(quantization__weights__bits=9), f"{WEIGHTS}.bits", "9 is more than 8"),
    "bits 2.5": (recipe_with(quantization__weights__bits=2.5), f"{WEIGHTS}.bits", "2.5 is not a"),
    "bits in quotes": (recipe_with(quantization__weights__bits="4"), f"{WEIGHTS}.bits", "'4' is"),
    "bits true": (recipe_with(quantization__weights__bits=True), f"{WEIGHTS}.bits", "true is not"),
    "bits missing": (recipe_with(quantization__weights__bits=ABSENT), f"{WEIGHTS}.bits", "missing"),
    "inputs of 0 bits": (
        recipe_with(quantization__activations__bits=0),
        "quantization.activations.bits",
        "0 is less than 1",
    ),
    "asymmetric inputs of 1 bit": (
        recipe_with(quantization__activations={"bits": 1, "grid": "asymmetric"}),
        "quantization.activations.grid",
        "asymmetric takes 2 bits or more; use unsigned for {0, 1}",
    ),
    "a sign estimator on 4 bits": (
        recipe_with(quantization__weights__estimator="approx_sign"),
        f"{WEIGHTS}.estimator",
        "approx_sign is for grids of two levels; set bits: 1",
    ),
    "ceil with an estimator of half-integers": (
        recipe_with(
            quantization__activations=SIDE | {"rounding": "ceil", "estimator": "sinusoidal"}
        ),
        "quantization.activations.estimator",
        "sinusoidal has its thresholds at half-integers, ceil at integers; choose one of: identity",
    ),
    "ceil on weights": (
        recipe_with(quantization__weights__rounding="ceil"),
        f"{WEIGHTS}.rounding",
        "unknown choice 'ceil'; choose one of: half_to_even, stochastic_rounding, additive_noise",
    ),
    "ternary weights of 4 bits": (
        recipe_with(quantization__weights__grid="ternary"),
        f"{WEIGHTS}.grid",
        "ternary takes bits: 2, for its three levels -1, 0 and 1",
    ),
    "a parameter that runs too far": (
        recipe_with(
            quantization__weights__estimator={"name": "sinusoidal", "amplitude": RISING},
        ),
        f"{WEIGHTS}.estimator.amplitude",
        "its value becomes wrong: 1.0 is not less than 1.0",
    ),
    "a parameter that may not be scheduled": (
        recipe_with(quantization__weights__estimator={"name": "triangular", "height": RISING}),
        f"{WEIGHTS}.estimator.height",
        "is not a number; it stays as it is in training",
    ),
    "freezing without a threshold": (
        recipe_with(quantization__weights__freezing={"momentum": 0.01}),
        f"{WEIGHTS}.freezing.threshold",
        "missing",
    ),
    "dampening that turns negative": (
        recipe_with(quantization__weights__dampening=RISING | {"stop": -1.0}),
        f"{WEIGHTS}.dampening",
        "it must not be negative",
    ),
    "batch norm batches below 0": (
        recipe_with(training__batch_norm_batches=-1),
        "training.batch_norm_batches",
        "-1 is less than 0",
    ),
    "own estimator without a file": (
        recipe_with(quantization__weights__estimator="nowhere.py:soft"),
        f"{WEIGHTS}.estimator",
        "nowhere.py: no such file; an estimator lies beside its recipe",
    ),
    "own estimator without a function": (
        recipe_with(quantization__weights__estimator="nowhere.py"),
        f"{WEIGHTS}.estimator",
        "unknown estimator 'nowhere.py'",
    ),
    "unknown section": (recipe_with(trainig={}), "trainig", "did you mean training?"),
    "unknown key in model": (
        recipe_with(model__weihgts="none"),
        "model.weihgts",
        "unknown key; did you mean weights?",
    ),
    "unknown key in data": (
        recipe_with(data__batchsize=3),
        "data.batchsize",
        "unknown key; did you mean batch_size?",
    ),
    "unknown key in training": (
        recipe_with(training__epoch=3),
        "training.epoch",
        "did you mean epochs?",
    ),
    "unknown key in quantization": (
        recipe_with(quantization__weight=None),
        "quantization.weight",
        "did you mean weights?",
    ),
    "unknown key in weights": (
        recipe_with(quantization__weights__granularty="per_tensor"),
        f"{WEIGHTS}.granularty",
        "did you mean granularity?",
    ),
    "unknown key in an override": (
        recipe_with(quantization__overrides__0__wieghts=None),
        "quantization.overrides.0.wieghts",
        "did you mean weights?",
    ),
    "unknown key in an override's weights": (
        recipe_with(quantization__overrides__0__weights={"bts": 4}),
        "quantization.overrides.0.weights.bts",
        "did you mean bits?",
    ),
    "unknown parameter of a choice": (
        recipe_with(training__optimizer={"name": "sgd", "momentun": 0.9}),
        "training.optimizer.momentun",
        "did you mean momentum?",
    ),
    "a key that is a number": (replaced("seed: 0", "seed: 0\n1: 2"), "1", "a key must be text"),
    "a parameter that is a number": (
        recipe_with(training__optimizer={"name": "sgd", 1: 2}),
        "training.optimizer.1",
        "sgd has no parameter 1",
    ),
    "unknown estimator": (
        recipe_with(quantization__weights__estimator="straight_trough"),
        f"{WEIGHTS}.estimator",
        "unknown estimator 'straight_trough'; did you mean straight_through?",
    ),
    "unknown estimator in an override": (
        recipe_with(quantization__overrides__0__weights={"estimator": "identify"}),
        "quantization.overrides.0.weights.estimator",
        "did you mean identity?",
    ),
    "estimator is a list": (
        recipe_with(quantization__weights__estimator=[1]),
        f"{WEIGHTS}.estimator",
        "[1] is not a name or {name: ..., parameter: ...}",
    ),
    "unknown range": (
        recipe_with(quantization__weights__range="learnd"),
        f"{WEIGHTS}.range",
        "unknown range 'learnd'; did you mean learned?",
    ),
    "unknown schedule": (
        recipe_with(training__learning_rate=RATE | {"name": "cosin"}),
        "training.learning_rate",
        "unknown schedule 'cosin'; did you mean cosine?",
    ),
    "learning rate is a word": (
        recipe_with(training__learning_rate="nan"),
        "training.learning_rate",
        "unknown schedule 'nan'; choose one of: constant, linear, cosine, cubic, polynomial, "
        "exponential, step, piecewise, or give a number",
    ),
    "learning rate in quotes": (
        replaced("learning_rate: 0.01", "learning_rate: '1e-2'"),
        "training.learning_rate",
        "unknown schedule '1e-2'; a number is written without quotes",
    ),
    "epochs in quotes": (
        recipe_with(training__epochs="3"),
        "training.epochs",
        "'3' is not a whole number; leave out the quotes",
    ),
    "a folder that YAML takes for false": (
        recipe_with(data={"name": "image_folder", "folder": False}),
        "data.folder",
        "false is not text; put it in quotes, as it was written, for text",
    ),
    "unknown optimizer": (
        recipe_with(training__optimizer="sdg"),
        "training.optimizer",
        "unknown optimizer 'sdg'; did you mean sgd?",
    ),
    "optimizer without a name": (
        recipe_with(training__optimizer={"momentum": 0.9}),
        "training.optimizer.name",
        "missing; choose one of: sgd, adamw",
    ),
    "optimizer's name is a number": (
        recipe_with(training__optimizer={"name": 5}),
        "training.optimizer.name",
        "5 is not text; choose one of: sgd, adamw",
    ),
    "unknown loss": (
        recipe_with(training__loss="cross_entrop"),
        "training.loss",
        "unknown loss 'cross_entrop'; did you mean cross_entropy?",
    ),
    "unknown model": (
        recipe_with(model__name="resnt18"),
        "model.name",
        "unknown model 'resnt18'; did you mean resnet18?",
    ),
    "model's name is a number": (recipe_with(model__name=5), "model.name", "5 is not text"),
    "unknown data set": (
        recipe_with(data__name="digit"),
        "data.name",
        "unknown data set 'digit'; did you mean digits?",
    ),
    "a model's weights that nobody published": (
        recipe_with(model__weights="DEFAULT"),
        "model.weights",
        "lenet5 has no published weights; set none or the path of a state_dict",
    ),
    "unknown precision": (
        recipe_with(training__precision="Float32"),
        "training.precision",
        "unknown choice 'Float32'; did you mean float32?",
    ),
    "learning rate 1e400": (
        replaced("learning_rate: 0.01", "learning_rate: 1e400"),
        "training.learning_rate.value",
        "inf is not a finite number",
    ),
    "learning rate .nan": (
        replaced("learning_rate: 0.01", "learning_rate: .nan"),
        "training.learning_rate.value",
        "nan is not a finite number",
    ),
    "learning rate of 400 digits": (
        recipe_with(training__learning_rate=10**400),
        "training.learning_rate.value",
        "is not a number",
    ),
    "learning rate negative": (
        recipe_with(training__learning_rate=-0.5),
        "training.learning_rate",
        "the learning rate becomes -0.5",
    ),
    "learning rate negative at the end": (
        recipe_with(training__learning_rate=RATE | {"stop": -0.1}),
        "training.learning_rate",
        "the learning rate becomes -",
    ),
    "warmup of the whole training": (
        recipe_with(training__learning_rate=RATE | {"warmup": 1}),
        "training.learning_rate.warmup",
        "1 is not a share of training",
    ),
    "warmup of 400 digits": (
        recipe_with(training__learning_rate=RATE | {"warmup": 10**400}),
        "training.learning_rate.warmup",
        "is not a share of training",
    ),
    "window reversed": (
        recipe_with(training__learning_rate=RATE | {"window": [0.8, 0.2]}),
        "training.learning_rate.window",
        "[0.8, 0.2] is not a window",
    ),
    "momentum 1": (
        recipe_with(training__optimizer={"name": "sgd", "momentum": 1}),
        "training.optimizer.momentum",
        "1 is not less than 1",
    ),
    "momentum .inf": (
        recipe_with(training__optimizer={"name": "sgd", "momentum": float("inf")}),
        "training.optimizer.momentum",
        "inf is not less than 1",
    ),
    "learning_rate_scale .nan": (
        recipe_with(quantization__weights__learning_rate_scale=float("nan")),
        f"{WEIGHTS}.learning_rate_scale",
        "nan is not a finite number",
    ),
    "blend and estimator with a learned range": (
        recipe_with(
            quantization__weights=SIDE
            | {"blend": CUBIC, "estimator": "identity", "range": "learned"}
        ),
        f"{WEIGHTS}.blend",
        "excludes range: learned; choose absmax or mse",
    ),
    "blend with a learned range": (
        recipe_with(quantization__weights=SIDE | {"blend": CUBIC, "range": "learned"}),
        f"{WEIGHTS}.blend",
        "excludes range: learned; choose absmax or mse",
    ),
    "blend with a learned range in an override": (
        recipe_with(quantization__overrides__0__weights={"blend": CUBIC}),
        "quantization.overrides.0.weights.blend",
        "excludes range: learned; choose absmax or mse",
    ),
    "distillation without a teacher": (
        recipe_with(training__distillation={"loss": "kl"}),
        "training.distillation",
        "its teacher is the float network with model.weights, and there are none; set "
        "model.weights, or training.teacher: {name: ..., weights: ...}",
    ),
    "teacher without a distillation": (
        recipe_with(training__teacher={"name": "lenet5", "weights": "a.pt"}),
        "training.teacher",
        "it teaches nothing without training.distillation; add that, such as {loss: kl}",
    ),
    "teacher without weights": (
        recipe_with(training__distillation={}, training__teacher={"name": "lenet5"}),
        "training.teacher.weights",
        "missing",
    ),
    "teacher that knows nothing": (
        recipe_with(
            training__distillation={}, training__teacher={"name": "lenet5", "weights": "none"}
        ),
        "training.teacher.weights",
        "a teacher knows something; give a file, or a name of published weights",
    ),
    "teacher of an unknown name": (
        recipe_with(
            training__distillation={}, training__teacher={"name": "lenet6", "weights": "a.pt"}
        ),
        "training.teacher.name",
        "unknown model 'lenet6'; did you mean lenet5?",
    ),
    "teacher with a key of other networks": (
        recipe_with(
            training__distillation={},
            training__teacher={"name": "lenet5", "weights": "a.pt", "channels": 1},
        ),
        "training.teacher.channels",
        "lenet5 takes the channels of its images; leave it out",
    ),
    "share of nothing": (
        recipe_with(training__distillation={"share": 0}),
        "training.distillation.share",
        "0 is not more than 0",
    ),
    "temperature of features": (
        recipe_with(**TAUGHT, training__distillation={"loss": "features", "temperature": 2}),
        "training.distillation.temperature",
        "is of loss: kl alone; leave it out",
    ),
    "teacher in a graph": (
        recipe_with(**TAUGHT, training__distillation={}, training__cuda_graph=True),
        "training.cuda_graph",
        "a graph that captures a teacher has not been tried; leave it out",
    ),
    "compiled features": (
        recipe_with(**TAUGHT, training__distillation={"loss": "features"}, training__compile=True),
        "training.compile",
        "with distillation.loss: features: what blocks return is noted by hooks",
    ),
    "softened outputs of several classes": (
        recipe_with(**TAUGHT, training__distillation={}, training__loss="binary_cross_entropy"),
        "training.distillation.loss",
        "kl softens outputs of which one class is right, and an image may have several; choose",
    ),
    "blend that never reaches 1": (
        recipe_with(quantization__weights=SIDE | {"blend": CUBIC | {"stop": 0.5}}),
        f"{WEIGHTS}.blend",
        "alpha ends at 0.5; it must reach 1",
    ),
    "blend beyond 1": (
        recipe_with(quantization__weights=SIDE | {"blend": CUBIC | {"start": 2.0}}),
        f"{WEIGHTS}.blend",
        "alpha must stay within 0 and 1",
    ),
    "mid_rise at 8 bits": (
        recipe_with(quantization__weights={"bits": 8, "grid": "mid_rise"}),
        f"{WEIGHTS}.grid",
        "mid_rise takes 1 to 7 bits",
    ),
    "mid_rise at an override's 8 bits": (
        recipe_with(quantization__weights__grid="mid_rise"),
        "quantization.overrides.0.weights.grid",
        "mid_rise takes 1 to 7 bits",
    ),
    "override without match": (
        recipe_with(quantization__overrides__0__match=ABSENT),
        "quantization.overrides.0.match",
        "missing",
    ),
    "override that matches nothing at all": (
        recipe_with(quantization__overrides__0__match=[]),
        "quantization.overrides.0.match",
        "names no layer",
    ),
    "match is a number": (
        recipe_with(quantization__overrides__0__match=5),
        "quantization.overrides.0.match",
        "5 is not text; put it in quotes, as it was written, for text; 5 is not a list",
    ),
    "overrides is a mapping": (
        recipe_with(quantization__overrides={"match": "conv1"}),
        "quantization.overrides",
        "is not a list",
    ),
    "section is empty": (recipe_with(model=None), "model", "null is not a mapping of keys"),
    "section is a word": (recipe_with(data="digits"), "data", "'digits' is not a mapping of keys"),
    "image size below 4": (recipe_with(data__image_size=2), "data.image_size", "2 is less than 4"),
}


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(("text", "place", "why"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_a_wrong_value_is_named_with_its_place_before_anything_is_built(
    text: str, place: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    message = refused(tmp_path, "train", "r.yaml")
    assert message.startswith("error: r.yaml: ")
    assert f" {place}: " in message
    told = message.partition(f" {place}: ")[2]
    assert why in told
    assert len(message) < 1500


def test_most_wrong_values_are_found_without_torch_in_the_same_words() -> None:
    found = 0
    for what, (text, _, _) in WRONG_VALUES.items():
        with suppress(yaml.YAMLError):
            data = parse_yaml(text)
            assert isinstance(data, dict)
            lines = {f"  {place}: {why}" for place, why in early_problems(data)}
            if lines:
                with pytest.raises(RecipeError) as caught:
                    check_recipe(data, Path("r.yaml"))
                assert lines <= set(str(caught.value).splitlines()), what
                found += 1

    assert found >= 47  # the others break rules between keys, or are values of schedules


NOT_A_RECIPE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty; a recipe has the keys seed, model"),
    "only comments": (b"# a\n# b\n", "empty; a recipe has the keys seed, model"),
    "a list": (b"- a\n- b\n", "holds a list; a recipe is a mapping with the keys"),
    "a number": (b"5", "holds 5; a recipe is a mapping"),
    "binary data": (bytes(range(256)), "not a text file; a recipe is YAML in UTF-8"),
    "UTF-16": ("seed: 0".encode("utf-16"), "not a text file"),
    "a zero byte": (b"seed: \0", "not YAML: unacceptable character"),
    "an open bracket": (b"a: [1, 2", "not YAML: line 1, column 9: expected ',' or ']'"),
    "an open bracket at the end": (b"a: [1,\n", "ends before a bracket or a quote is closed"),
    "an open bracket of a line before": (
        b"a: {b: c\nd: {e: f}\n",
        "the bracket that opens in line 1, column 4, is not closed, or a comma is missing",
    ),
    "another indentation": (
        b"a:\n  b: c\n d: e\n",
        "line 3, column 2: expected <block end>, but found '<block mapping start>'; "
        "this line is indented otherwise than those before it",
    ),
    "a glob without quotes": (b"match: *.conv1", "put a text that begins with * or & in quotes"),
    "a name that is no alias": (b"match: *conv1", "put a text that begins with * or & in quotes"),
    "an at sign": (b"a: @b", "cannot start any token; put the text that begins with it in quotes"),
    "a colon in a text": (b"a: b: c", "put a text with a colon in it in quotes"),
    "a tab": (b"a:\n\t- b", "that cannot start any token; indent with spaces, not with tabs"),
    "two documents": (b"a: 1\n---\nb: 2", "another document"),
    "a key written twice": (b"seed: 0\nseed: 1", "line 2: the key seed is written twice"),
    "a nested key written twice": (
        b"model:\n  name: a\n  name: b",
        "line 3: the key name is written twice",
    ),
    "a list as a key": (b"? [a]\n: 2", "not YAML: line 1, column 3: found unhashable key"),
    "an unknown alias": (b"a: *b", "found undefined alias"),
    "a Python object": (b"a: !!python/object/apply:os.getcwd []", "not YAML: line 1, column 4"),
    "a date": (b"seed: 2020-13-45", "'2020-13-45' is not a whole number"),
    "a number of 5000 digits": (
        b"seed: 1" + b"0" * 5000,
        "not YAML: line 1, column 7: a number of 5,001 digits",
    ),
    "brackets 5000 deep": (
        b"[" * 5000,
        "not YAML: line 1, column 21: nested more than 20 deep",
    ),
    "an alias of itself": (b"seed: &a [*a]", "line 1, column 11: *a stands inside what it names"),
    "a section in itself": (b"a: &l {name: *l}", "line 1, column 14: *l stands inside what"),
    "a billion laughs": (
        f"b0: &b0 [x, x]\n{LAUGHS}".encode(),
        "line 5, column 25: more than 10,000 values, with all aliases written out",
    ),
    "a long text by many aliases": (
        f"a: &a {'x' * 400_000}\nb: [*a, *a]".encode(),
        "line 2, column 9: more than 1,000,000 characters, with all aliases written out",
    ),
    "more than a megabyte": (b"#" * 1_000_001, "more than 1,000,000 bytes"),
    "a number that begins with 0": (
        b"seed: 010",
        "line 1, column 7: 010 begins with 0, which some readers of YAML take for a number to the "
        'base 8; write 10, or "010" in quotes for text',
    ),
    "a time of day": (b"seed: 1:30", "'1:30' is not a whole number"),
    "a number with a tag": (b"seed: !!int ''", "the tag !!int; write the plain value"),
    "a tag of its own": (b"seed: ! 1", "the tag !; write the plain value"),
    "no digits": (b"seed: 0x_", "'0x_' is not a whole number"),
}


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize("command", ["train", "inspect"])
@pytest.mark.parametrize(("content", "why"), NOT_A_RECIPE.values(), ids=NOT_A_RECIPE.keys())
def test_a_file_that_is_no_recipe_is_refused(
    content: bytes, why: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    message = refused(tmp_path, command, "r.yaml")
    assert message.startswith("error: r.yaml: ")
    assert why in message


@pytest.mark.usefixtures("nothing_is_built")
def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        recipe_with(
            seed=-1,
            model={"name": "resnt18", "weights": 5},
            data={"name": "digit", "image_size": 2, "batchsize": 3},
            quantization__weights__bits=11,
            quantization__activations__estimator="relo",
            training__epochs=0,
            training__optimizer={"name": "sgd", "momentum": 2.0, "nesterof": True},
            training__learning_rate=RATE | {"warmup": 2, "window": [1]},
            extra=1,
        )
    )
    message = refused(tmp_path, "train", "r.yaml")
    places = [
        "seed",
        *("model.name", "model.weights", "data.name", "data.image_size"),
        *("quantization.weights.bits", "quantization.activations.estimator"),
        *("training.epochs", "training.optimizer.momentum", "training.optimizer.nesterof"),
        *("training.learning_rate.warmup", "training.learning_rate.window"),
        "extra",
    ]
    assert message.startswith(f"error: r.yaml: {len(places)} problems ")
    assert [place for place in places if f" {place}: " not in message] == []


# what is wrong -> (changes of the recipe, words of the message)
WRONG_BY_CONTENT: dict[str, tuple[dict[str, Any], str]] = {
    "override that matches no layer": (
        {"quantization__overrides__0__match": ["conv1", "conv9"]},
        "overrides.0.match: 'conv9' matches no layer; did you mean conv2?",
    ),
    "overrides that leave every layer float": (
        {
            "quantization__overrides": [
                {"match": "conv*", "weights": None, "activations": None},
                {"match": "*", "weights": None, "activations": None},
            ]
        },
        "r.yaml: there is nothing to quantize: conv1: overrides.0 leaves weights and input float;",
    ),
    "weights that are missing": (
        {"model__weights": "nope.pt"},
        "nope.pt: no such file; model.weights names a file of weights",
    ),
    "weights that are a folder": ({"model__weights": "./"}, "is a folder; model.weights names"),
    "weights that are junk": ({"model__weights": "junk.pt"}, "junk.pt: is damaged"),
    "weights that are a list": (
        {"model__weights": "list.pt"},
        "list.pt: holds no state_dict, a mapping from names to tensors",
    ),
    "weights of another network": (
        {"model__weights": "other.pt"},
        "other.pt: does not fit the model",
    ),
    "images too small for the model": (
        {"data__image_size": 8},
        "lenet5 takes images of at least 12 pixels, got 8; set data.image_size",
    ),
    "images too small for a torchvision model": (
        {"model__name": "squeezenet1_1", "data__image_size": 8},
        "squeezenet1_1 does not take images of 8 pixels",
    ),
    "more samples than there are": (
        {"data__train_samples": 5000},
        "train_samples is 5,000, more than the 1,297 training images there are",
    ),
    "data set that is missing": (
        {"data": {"name": "mnist", "root": "data"}},
        "mnist: not found or incomplete, and it could not be downloaded",
    ),
    "images that are missing": (
        {"data": {"name": "image_folder", "root": "nowhere"}},
        "nowhere: no such folder",
    ),
    "array file that is missing": (
        {"data": {"name": "arrays", "file": "x.npz", "root": "data"}},
        "data/x.npz: no such file",
    ),
}


@pytest.mark.parametrize(("changes", "why"), WRONG_BY_CONTENT.values(), ids=WRONG_BY_CONTENT.keys())
def test_a_recipe_whose_files_or_layers_are_not_there_leaves_no_run_folder(
    changes: dict[str, Any],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    (tmp_path / "data").mkdir()
    (tmp_path / "junk.pt").write_bytes(b"junk" * 100)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "r.yaml").write_text(recipe_with(**changes))
    assert why in refused(tmp_path, "train", "r.yaml", "--device", "cpu")


TRAIN = ["train", "r.yaml", "--run-dir", "new"]
ARMS = ["compare", "estimators", "r.yaml", "--output", "new"]
SHAPES = ["compare", "schedules", "r.yaml", "--output", "new"]

# what is wrong -> (command line, words of the message)
WRONG_COMMANDS: dict[str, tuple[list[str], str]] = {
    "unknown command": (["trian", "r.yaml"], "No such command 'trian'"),
    "unknown option": (["train", "r.yaml", "--epochs", "3"], "No such option: --epochs"),
    "missing argument": (["train"], "Missing argument"),
    "missing value": (["train", "r.yaml", "--run-dir"], "requires an argument"),
    "one argument too many": (["train", "r.yaml", "x"], "unexpected extra argument"),
    "nothing to compare": (["compare", "runs"], "Missing argument"),
    "missing run": (["convert", "runs/no"], "runs/no: no such file or folder; give a run folder"),
    "missing recipe": (["train", "no.yaml"], "no.yaml: no such file or folder; give the path"),
    "recipe is a folder": (["train", "foreign"], "foreign: a folder; give the path of a recipe"),
    "--set without =": ([*TRAIN, "--set", "training.epochs"], "write key=value, such as"),
    "--set without a key": ([*TRAIN, "--set", "=3"], "--set =3: write key=value"),
    "--set with a hole": ([*TRAIN, "--set", "training..epochs=3"], "write key=value"),
    "--set into a list by name": (
        [*TRAIN, "--set", "quantization.overrides.x=3"],
        "quantization.overrides is a list of 1; pick one by its number, from 0",
    ),
    "--set beyond a list": (
        [*TRAIN, "--set", "quantization.overrides.1.match=x"],
        "quantization.overrides is a list of 1; pick one by its number, from 0",
    ),
    "--set with a superscript": ([*TRAIN, "--set", "quantization.overrides.²=x"], "is a list of 1"),
    "--set into a number": (
        [*TRAIN, "--set", "seed.a=3"],
        "--set seed.a=3: seed is 0, which has no keys",
    ),
    "--set with bad YAML": (
        [*TRAIN, "--set", "training.epochs=[1"],
        "--set training.epochs=[1: the value is not YAML",
    ),
    "--set with an impossible date": (
        [*TRAIN, "--set", "seed=2020-13-45"],
        "is not a whole number",
    ),
    "--set with 5000 brackets": (
        [*TRAIN, "--set", f"seed={'[' * 5000}"],
        "nested more than 20 deep",
    ),
    "--set with 5000 digits": (
        [*TRAIN, "--set", f"seed=1{'0' * 5000}"],
        "a number of 5,001 digits",
    ),
    "--set of an unknown key": (
        [*TRAIN, "--set", "training.epohcs=3"],
        "training.epohcs: unknown key; did you mean epochs?",
    ),
    "--set of nothing": (
        [*TRAIN, "--set", "training.epochs="],
        "training.epochs: null is not a whole number",
    ),
    "--device cuda:99": ([*TRAIN, "--device", "cuda:99"], "--device cuda:99: this machine has"),
    "--device tpu": ([*TRAIN, "--device", "tpu"], "choose auto, cpu, cuda, mps or cuda:N"),
    "--device of nothing": ([*TRAIN, "--device", ""], "choose auto, cpu, cuda, mps or cuda:N"),
    "--device cpu:0": ([*TRAIN, "--device", "cpu:0"], "choose auto, cpu, cuda, mps or cuda:N"),
    "convert --device tpu": (["convert", "run", "--device", "tpu"], "choose auto, cpu, cuda"),
    "--seeds 0": ([*ARMS, "--seeds", "0"], "0 is not a number of seeds from 1 to 1000"),
    "--seeds x": ([*ARMS, "--seeds", "x"], "'x' is neither a number of seeds nor a list"),
    "--seeds of nothing": ([*ARMS, "--seeds", ""], "'' is neither a number of seeds"),
    "--seeds of a comma": ([*ARMS, "--seeds", ","], "',' is neither a number of seeds"),
    "--seeds -1": ([*ARMS, "--seeds", "-1"], "'-1' is neither a number of seeds"),
    "--seeds with a hole": ([*ARMS, "--seeds", "1,,2"], "'1,,2' is neither a number"),
    "--seeds with a superscript": ([*ARMS, "--seeds", "²"], "'²' is neither a number"),
    "--seeds 1,1": ([*ARMS, "--seeds", "1,1"], "'1,1' names a seed twice"),
    "--seeds 99999999999": ([*ARMS, "--seeds", "99999999999"], "not a number of seeds from 1"),
    "--seeds beyond 31 bits": ([*ARMS, "--seeds", "2147483648,"], "is not less than 2147483648"),
    "--on nothing": ([*ARMS, "--on", "nothing"], "'nothing' is neither weights nor activations"),
    "--on a float side": (
        [*ARMS, "--on", "activations", "--set", "quantization.activations=null"],
        "quantization.activations is float, so it has no estimator",
    ),
    "--estimators nope": ([*ARMS, "--estimators", "nope"], "unknown estimator 'nope'; choose one"),
    "--estimators a,a": ([*ARMS, "--estimators", "relu,relu"], "an estimator is named twice"),
    "--estimators of nothing": ([*ARMS, "--estimators", ""], "unknown estimator ''"),
    "--schedules nope": ([*SHAPES, "--schedules", "nope"], "unknown schedule 'nope'; choose one"),
    "--schedules a,a": ([*SHAPES, "--schedules", "step,step"], "a schedule is named twice"),
    "--schedules of another value": (
        [*SHAPES, "--schedules", "constant", "--set", "quantization.weights.range=absmax"],
        "quantization.weights.blend.value: missing",
    ),
    "--on weights": ([*SHAPES, "--on", "weights"], "'weights' is neither alpha nor learning_rate"),
    "--windows 0.8-0": ([*SHAPES, "--windows", "0.8-0"], "'0.8-0' is not a list of windows a-b"),
    "--windows 0-1-2": ([*SHAPES, "--windows", "0-1-2"], "'0-1-2' is not a list of windows a-b"),
    "--windows of nothing": ([*SHAPES, "--windows", ""], "'' is not a list of windows a-b"),
    "--windows 0-nan": ([*SHAPES, "--windows", "0-nan"], "'0-nan' is not a list of windows a-b"),
    "--windows twice": ([*SHAPES, "--windows", "0-1,0.0-1"], "'0-1,0.0-1' names a window twice"),
    "blends of a learned range": (SHAPES, "blend: excludes range: learned; choose absmax or mse"),
    "alpha of a float network": (
        [*SHAPES, "--set", "quantization=null"],
        "r.yaml: nothing is quantized, so there is no alpha",
    ),
    "schedules into a file": (
        ["compare", "schedules", "r.yaml", "--on", "learning_rate", "--output", "r.yaml"],
        "r.yaml is a file",
    ),
    "arms with a wrong recipe": (
        [*ARMS, "--set", "training.epochs=x"],
        "'x' is not a whole number",
    ),
    "arms on tpu": ([*ARMS, "--device", "tpu"], "choose auto, cpu, cuda, mps or cuda:N"),
    "arms into a file": (["compare", "estimators", "r.yaml", "--output", "r.yaml"], "is a file"),
    "--batch 0": (["export", "run", "--batch", "0"], "'0' is not a number of images"),
    "--batch ²": (["export", "run", "--batch", "²"], "'²' is not a number of images"),
    "--batch 1.5": (["export", "run", "--batch", "1.5"], "'1.5' is not a number of images"),
    "--target nope": (
        ["export", "run", "--target", "nope"],
        "unknown target 'nope'; choose one of: onnxruntime, int2, int4, int8, openvino, portable, "
        "qonnx, web, all",
    ),
    "--ceil nope": (["export", "run", "--ceil", "nope"], "'nope' is neither exact nor shifted"),
    "own estimator that is not there": (
        [*ARMS, "--estimators", "nowhere.py:soft"],
        "nowhere.py: no such file; an estimator lies beside its recipe",
    ),
    "--run-dir is a file": (["train", "r.yaml", "--run-dir", "r.yaml"], "r.yaml is a file; give"),
    "--run-dir in a file": (["train", "r.yaml", "--run-dir", "r.yaml/a/b"], "r.yaml is a file"),
    "--run-dir is too long": (["train", "r.yaml", "--run-dir", "x" * 300], "x: "),
    "--run-dir is foreign": (
        ["train", "r.yaml", "--run-dir", "foreign"],
        "foreign: not empty, and not a run; choose another --run-dir",
    ),
    "--run-dir is foreign, --resume": (
        ["train", "r.yaml", "--run-dir", "foreign", "--resume"],
        "foreign: not empty, and not a run",
    ),
    "--run-dir holds another run": (
        ["train", "r.yaml", "--run-dir", "run", "--set", "seed=3"],
        "run: holds a different run (seed: 0 there, 3 here)",
    ),
    "--run-dir holds another run, --resume": (
        ["train", "r.yaml", "--run-dir", "run", "--set", "seed=3", "--resume"],
        "run: holds a different run (seed: 0 there, 3 here)",
    ),
    "--run-dir holds this run": (
        ["train", "r.yaml", "--run-dir", "run"],
        "run: holds this run already; add --resume",
    ),
    "export onto a folder": (["export", "run", "--output", "foreign"], "foreign: a folder"),
    "comparison into a file": (["compare", "runs", "run", "--output", "r.yaml"], "r.yaml"),
    "convert of nothing": (["convert", "no"], "no: no such file or folder"),
    "convert of a foreign folder": (["convert", "foreign"], "not a run folder, it has no recipe"),
    "convert of an ONNX file": (
        ["convert", "run/model.onnx"],
        "run/model.onnx: an ONNX file; give a run",
    ),
    "convert of an integer model": (
        ["convert", "run/integer.safetensors"],
        "run/integer.safetensors: an integer model or file of weights; give a run folder",
    ),
    "export of nothing": (["export", "no"], "no: no such file or folder; give a run"),
    "export of a foreign folder": (["export", "foreign"], "not a run folder, it has no recipe"),
    "export of a recipe": (["export", "r.yaml"], "r.yaml: a recipe; give a run folder or integer"),
    "export of an ONNX file": (
        ["export", "run/model.onnx"],
        "run/model.onnx: an ONNX file; give a run",
    ),
    "inspect of nothing": (["inspect", "no"], "no: no such file or folder"),
    "inspect of no ONNX file": (["inspect", "no.onnx"], "no.onnx: no such file or folder"),
    "inspect of no integer model": (
        ["inspect", "no.safetensors"],
        "no.safetensors: no such file or folder",
    ),
    "inspect of a foreign folder": (["inspect", "foreign"], "not a run folder, it has no recipe"),
    "runs of nothing": (["compare", "runs", "no"], "no: neither a run folder nor an .onnx file"),
    "runs of no ONNX file": (["compare", "runs", "run", "no.onnx"], "no.onnx: no such file"),
    "runs of a foreign folder": (["compare", "runs", "run", "foreign"], "not a run folder"),
    "runs of an integer model": (
        ["compare", "runs", "run/integer.safetensors"],
        "run/integer.safetensors: neither a run folder nor an .onnx file",
    ),
}


@pytest.mark.parametrize(("argv", "why"), WRONG_COMMANDS.values(), ids=WRONG_COMMANDS.keys())
@pytest.mark.usefixtures("run_copy")
def test_a_wrong_command_says_what_would_be_right(
    argv: list[str], why: str, tmp_path: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("precious")
    assert why in refused(tmp_path, *argv)


A_MODEL = "give a run folder, an integer model or ONNX file"
OR_INTEGER = "give a run folder or integer model"
ANYTHING = "give a recipe, run, comparison or model, or the word estimators"
MAKE_IT = ": train or convert it first, and give that folder"
GO_ON = "run: a run folder; qtool {0} takes a recipe, and goes on with this run by qtool {0} "
GO_ON += "run/recipe.yaml --run-dir run --resume"

# command -> words of its message
OTHER_KINDS: dict[str, str] = {
    "predict r.yaml a.png": f"r.yaml: a recipe; {A_MODEL}{MAKE_IT}",
    "predict a.png a.png": f"a.png: an image; {A_MODEL}",
    "bench r.yaml": f"r.yaml: a recipe; {A_MODEL}{MAKE_IT}",
    "bench run/checkpoint.pt": "run/checkpoint.pt: a torch checkpoint or file of weights; "
    f"{A_MODEL}, such as run",
    "export r.yaml": f"r.yaml: a recipe; {OR_INTEGER}{MAKE_IT}",
    "export other.onnx": f"other.onnx: an ONNX file; {OR_INTEGER}",
    "export run/model.onnx": f"run/model.onnx: an ONNX file; {OR_INTEGER}, such as run",
    "export w.pt": f"w.pt: a torch checkpoint or file of weights; {OR_INTEGER}",
    "convert other.onnx": "other.onnx: an ONNX file; give a run folder or a recipe",
    "convert w.pt": "w.pt: a torch checkpoint or file of weights; give a run folder or a recipe",
    "train other.onnx": "other.onnx: an ONNX file; give the path of a recipe",
    "train run": GO_ON.format("train"),
    "run run": GO_ON.format("run"),
    "check run": "run: a run folder; give the path of a recipe, such as run/recipe.yaml",
    "sensitivity run": "run: a run folder; give the path of a recipe, such as run/recipe.yaml",
    "sensitivity other.onnx": "other.onnx: an ONNX file; give the path of a recipe",
    "compare estimators run": "run: a run folder; give the path of a recipe, such as run/recipe",
    "compare estimators a.png": "a.png: an image; give the path of a recipe",
    "inspect run/report.html": f"run/report.html: an HTML page; {ANYTHING}, such as run",
    "inspect run/metrics.jsonl": f"run/metrics.jsonl: a file of JSON lines; {ANYTHING}, such as",
    "inspect a.png": f"a.png: an image; {ANYTHING}",
    "inspect other.onnx --output p.html": "other.onnx: an ONNX file; give a run or a comparison",
}


@pytest.mark.parametrize(("command", "why"), OTHER_KINDS.items(), ids=OTHER_KINDS.keys())
def test_a_file_of_another_kind_is_told_as_what_it_is(
    command: str, why: str, run_copy: Path, tmp_path: Path
) -> None:
    for name in ("a.png", "w.pt", "run/report.html"):
        (tmp_path / name).write_bytes(b"\x89")
    shutil.copy(run_copy / "model.onnx", tmp_path / "other.onnx")
    assert refused(tmp_path, *command.split()).startswith(f"error: {why}")


def test_the_stories_tell_a_file_of_another_kind_likewise(run_copy: Path) -> None:
    onnx = run_copy / "model.onnx"
    for story in (pipeline.train, pipeline.convert, pipeline.export, pipeline.sensitivity):
        with pytest.raises(InputError, match=r"model\.onnx: an ONNX file; give "):
            story(onnx)
    with pytest.raises(InputError, match=r"run: a run folder; qtool train takes a recipe"):
        pipeline.train(run_copy)


def test_the_names_of_images_and_weights_are_those_that_are_read() -> None:
    assert {kind_named(f"a{suffix}") for suffix in IMAGES} == {Kind.IMAGE}
    kinds = {kind_named(f"a{suffix}") for suffix in WEIGHTS_FILES}
    assert kinds == {Kind.WEIGHTS, Kind.SAFETENSORS}


@pytest.mark.parametrize(
    "argv",
    [
        ["convert", "run", "--output", "foreign"],
        ["convert", "run", "--output", "r.yaml/x.safetensors"],
        ["export", "run", "--output", "r.yaml/x.onnx"],
        ["convert", "run", "--device", "cuda:²"],
    ],
    ids=["convert onto a folder", "convert into a file", "export into a file", "odd device"],
)
@pytest.mark.usefixtures("run_copy")
def test_an_impossible_output_or_device_is_refused_before_the_work(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("this should have been refused by now")

    monkeypatch.setattr(build, "make_data", too_late)
    (tmp_path / "foreign").mkdir()
    refused(tmp_path, *argv)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    path.write_bytes(bytes(torch.randint(0, 256, (5000,), generator=generator).tolist()))


def only_checkpoint(run: Path) -> Path:
    """Leave a run that is not finished and not converted; return its checkpoint."""
    (run / "summary.json").unlink()
    (run / "integer.safetensors").unlink()
    return run / "checkpoint.pt"


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def double(state: dict[str, Any]) -> dict[str, Any]:
    return {"fc3.bias": state["fc3.bias"].double()}


def first_buffer(state: dict[str, Any]) -> torch.Tensor:
    return state["optimizer"]["state"][0]["momentum_buffer"]


def other_metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"train_loss": ', '"train_loss": 1'))


def with_checkpoint(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = only_checkpoint(run)
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        (run / "checkpoint.pt.sha256").unlink()  # as of a stranger, or of before there were digests

    return damage


def with_metadata(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = run / "integer.safetensors"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        metadata["format"] = "3"  # of before there was a digest, or of a stranger
        change(metadata)
        save_file(tensors, path, metadata)

    return damage


def with_about(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(metadata: dict[str, str]) -> None:
        about = json.loads(metadata["about"])
        change(about)
        metadata["about"] = json.dumps(about)

    return with_metadata(damage)


RESUME = ["train", "r.yaml", "--run-dir", "run", "--resume", "--device", "cpu"]
USES_CHECKPOINT = [["convert", "run"], ["export", "run"], ["inspect", "run"], RESUME]
USES_INTEGER = [["export", "run/integer.safetensors"], ["inspect", "run/integer.safetensors"]]
USES_ONNX = [["inspect", "run/model.onnx"], ["compare", "runs", "run/model.onnx"]]
DAMAGED = "run/checkpoint.pt: damaged"
METADATA = "run/integer.safetensors: its metadata is damaged"

# what is damaged -> (damage, commands that meet it, words of their message)
DAMAGES: dict[str, tuple[Callable[[Path], Any], list[list[str]], str]] = {
    "no checkpoint": (
        lambda run: only_checkpoint(run).unlink(),
        USES_CHECKPOINT[:2],
        "run/checkpoint.pt: no checkpoint here; train the recipe first",
    ),
    "not finished": (only_checkpoint, [["compare", "runs", "run"]], "run: not finished; go on"),
    "half a checkpoint": (lambda run: half(only_checkpoint(run)), USES_CHECKPOINT, DAMAGED),
    "noise for a checkpoint": (lambda run: noise(only_checkpoint(run)), USES_CHECKPOINT, DAMAGED),
    "checkpoint of another format": (
        with_checkpoint(lambda state: state.update(format=9)),
        USES_CHECKPOINT,
        "run/checkpoint.pt: not a checkpoint of format 2 or 3",
    ),
    "checkpoint of a newer format": (
        with_checkpoint(lambda state: state.update(format=9, qtool="9.1")),
        USES_CHECKPOINT,
        "reads; qtool 9.1 wrote format 9 and reads it",
    ),
    "checkpoint with a bit of another": (
        lambda run: flip(only_checkpoint(run)),
        [*USES_CHECKPOINT, ["train", "r.yaml", "--set", "model.weights=run/checkpoint.pt"]],
        "run/checkpoint.pt: damaged, it is not what was written (SHA-256)",
    ),
    "checkpoint of other numbers": (
        with_checkpoint(lambda state: state["model"].update(double(state["model"]))),
        USES_CHECKPOINT,
        "fc3.bias is float64 [10], and must be float32 [10]",
    ),
    "checkpoint that is not finite": (
        with_checkpoint(lambda state: state["model"]["fc3.bias"].fill_(torch.inf)),
        USES_CHECKPOINT,
        "run/checkpoint.pt: damaged, or of another run: fc3.bias is not finite",
    ),
    "checkpoint whose optimizer is not finite": (
        with_checkpoint(lambda state: first_buffer(state).fill_(torch.nan)),
        [RESUME],
        "optimizer.state.0.momentum_buffer is not finite",
    ),
    "checkpoint of more epochs": (
        with_checkpoint(lambda state: state["history"].append(state["history"][0] | {"epoch": 2})),
        USES_CHECKPOINT,
        "it has 2 epochs, and the recipe 1",
    ),
    "checkpoint of no such epoch": (
        with_checkpoint(lambda state: state["history"][0].update(epoch=3)),
        USES_CHECKPOINT,
        "its history is not epoch 1, 2, ...",
    ),
    "metrics of another run": (
        lambda run: other_metrics(only_checkpoint(run).parent),
        USES_CHECKPOINT,
        "epoch 1 is another one in run/metrics.jsonl",
    ),
    "checkpoint without a part": (
        with_checkpoint(lambda state: state.pop("history")),
        USES_CHECKPOINT,
        "run/checkpoint.pt: a damaged checkpoint, in history",
    ),
    "checkpoint with another part": (
        with_checkpoint(lambda state: state.update(extra=1)),
        USES_CHECKPOINT,
        "run/checkpoint.pt: a damaged checkpoint, in extra",
    ),
    "checkpoint without an architecture": (
        with_checkpoint(lambda state: state["architecture"].clear()),
        USES_CHECKPOINT,
        DAMAGED,
    ),
    "checkpoint of another network": (
        with_checkpoint(lambda state: state["model"].update({"fc3.bias": torch.ones(3)})),
        USES_CHECKPOINT,
        DAMAGED,
    ),
    "checkpoint without its optimizer": (
        with_checkpoint(lambda state: state["optimizer"].clear()),
        [RESUME],
        DAMAGED,
    ),
    "checkpoint without random states": (
        with_checkpoint(lambda state: state["random"].clear()),
        [RESUME],
        DAMAGED,
    ),
    "half a recipe": (
        lambda run: half(run / "recipe.yaml"),
        [["convert", "run"], ["inspect", "run"], RESUME],
        "run/recipe.yaml: ",
    ),
    "half a summary": (
        lambda run: half(run / "summary.json"),
        [["compare", "runs", "run"], ["inspect", "run"], RESUME],
        "run/summary.json: cannot be read as JSON",
    ),
    "a summary without figures": (
        lambda run: (run / "summary.json").write_text('{"status": "finished"}'),
        [["compare", "runs", "run"], RESUME],
        "run/summary.json: damaged, it has no validation_accuracy",
    ),
    "half an integer model": (
        lambda run: half(run / "integer.safetensors"),
        USES_INTEGER,
        "run/integer.safetensors: not an integer model",
    ),
    "noise for an integer model": (
        lambda run: noise(run / "integer.safetensors"),
        USES_INTEGER,
        "run/integer.safetensors: not an integer model",
    ),
    "integer model of another format": (
        with_metadata(lambda metadata: metadata.update(format="7", qtool="9.1")),
        USES_INTEGER,
        "not an integer model of format 1, 2, 3 or 4, which qtool reads",
    ),
    "integer model of a newer format": (
        with_metadata(lambda metadata: metadata.update(format="17", qtool="9.1")),
        USES_INTEGER,
        "qtool 9.1 wrote format 17 and reads it",
    ),
    "integer model with a bit of another": (
        lambda run: flip(run / "integer.safetensors"),
        USES_INTEGER,
        "run/integer.safetensors: damaged, it is not what was written (SHA-256); convert again",
    ),
    "integer model without its digest": (
        with_metadata(lambda metadata: metadata.update(format="4", sha256="")),
        USES_INTEGER,
        "run/integer.safetensors: damaged, it is not what was written",
    ),
    "integer model without metadata": (
        with_metadata(lambda metadata: metadata.clear()),
        USES_INTEGER,
        "not an integer model of format 1, 2, 3 or 4",
    ),
    "integer model with broken JSON": (
        with_metadata(lambda metadata: metadata.update(about="{")),
        USES_INTEGER,
        METADATA,
    ),
    "integer model about a list": (
        with_metadata(lambda metadata: metadata.update(about="[1]")),
        USES_INTEGER,
        METADATA,
    ),
    "integer model without a recipe": (
        with_about(lambda about: about.pop("recipe")),
        USES_INTEGER,
        METADATA,
    ),
    "integer model with a wrong recipe": (
        with_about(lambda about: about["recipe"].update(seed="x")),
        USES_INTEGER,
        "run/integer.safetensors, its recipe: 1 problem seed: 'x' is not a whole number",
    ),
    "integer model without an architecture": (
        with_about(lambda about: about.pop("architecture")),
        USES_INTEGER,
        METADATA,
    ),
    "integer model with an empty architecture": (
        with_about(lambda about: about["architecture"].clear()),
        USES_INTEGER,
        METADATA,
    ),
    "half an ONNX file": (
        lambda run: half(run / "model.onnx"),
        USES_ONNX,
        "run/model.onnx: not an ONNX model",
    ),
    "noise for an ONNX file": (
        lambda run: noise(run / "model.onnx"),
        USES_ONNX,
        "run/model.onnx: not an ONNX model",
    ),
    "an empty ONNX file": (
        lambda run: (run / "model.onnx").write_bytes(b""),
        USES_ONNX,
        "run/model.onnx: not an ONNX model",
    ),
}


@pytest.mark.parametrize(("damage", "commands", "why"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_named_and_stays_as_it_is(
    damage: Callable[[Path], Any],
    commands: list[list[str]],
    why: str,
    run_copy: Path,
) -> None:
    damage(run_copy)
    for command in commands:
        message = refused(run_copy.parent, *command)
        assert why in message, command
        assert len(message) < 500
