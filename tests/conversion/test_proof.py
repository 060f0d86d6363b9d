"""The proof proves: it looks at something, it names what is wrong, and nothing disturbs it."""

import copy
import json
from contextlib import suppress

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import qtool
from qtool.conversion.proof import prove
from qtool.errors import ConversionError
from qtool.graph.inputs import Inputs
from qtool.integer.exact import exact_arithmetic
from qtool.integer.file import load_integer, read_about, save_integer
from qtool.integer.layers import integer_layers
from tests.kit import float_net

IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
NAN = float("nan")


def section(bits=4, activations=4, **more):
    return {
        "weights": {"bits": bits},
        "activations": {"bits": activations, "place": "layer_inputs"},
        **more,
    }


def prepared(net=None, example=IMAGES, **bits):
    return qtool.prepare(net or float_net(), section(**bits), example).eval()


def folded(integer) -> list[str | None]:
    return [spec.batch_norm for spec in integer.qtool.layers]


# it looks at something


@pytest.mark.parametrize("batches", [[], iter(()), (b for b in ())])
def test_no_batches_are_refused(batches):
    with pytest.raises(ValueError, match="convert needs at least one batch"):
        qtool.convert(prepared(), batches)


def test_batches_without_images_are_refused():
    with pytest.raises(ValueError, match="its batches hold none"):
        qtool.convert(prepared(), [IMAGES[:0], IMAGES[:0]])
    assert qtool.convert(prepared(), [IMAGES[:0], IMAGES[:3]]).qtool.proof.images == 3


def test_a_model_that_never_ran_needs_batches_and_then_folds_as_one_that_did():
    ran = prepared()
    waits = qtool.prepare(float_net(), section()).eval()
    waits.load_state_dict(ran.state_dict())
    with pytest.raises(ConversionError, match="give convert batches, or prepare an example"):
        qtool.convert(waits)

    integer = qtool.convert(waits, (batch for batch in (IMAGES[:8], IMAGES[8:])))
    assert folded(integer) == ["bn1", "bn2", None]
    assert integer.qtool.proof.images == 24
    assert torch.equal(integer(IMAGES), qtool.convert(ran)(IMAGES))


def test_a_generator_is_asked_for_each_batch_once():
    asked = []

    def batches():
        for start in (0, 8, 16):
            asked.append(start)
            yield IMAGES[start : start + 8]

    assert qtool.convert(prepared(), batches()).qtool.proof.images == 24
    assert asked == [0, 8, 16]


def test_a_first_pass_by_keyword_is_an_example():
    model = qtool.prepare(float_net(), section()).eval()
    model(x=IMAGES)
    integer = qtool.convert(model)

    assert folded(integer) == ["bn1", "bn2", None]
    assert integer.qtool.proof.layers_compared == 3


def test_a_layer_that_the_batches_do_not_reach_is_named():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.usual, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return self.other(x) if x.mean() > 1 else self.usual(x)

    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    model = qtool.prepare(Branches(), section(), rows).eval()
    model(rows + 9)
    integer = qtool.convert(model, [rows])
    assert integer.qtool.proof.layers_compared == 1
    assert "other: not called on the proof's batches, so not compared" in integer.qtool.notes
    assert qtool.convert(model, [rows, rows + 9]).qtool.proof.layers_compared == 2


class Sometimes(nn.Module):
    """Calls its layer, or the norm behind it, as many times as the numbers of its input say."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        layers, norms = (int(count) for count in x[0, :2])
        for _ in range(layers):
            y = self.fc(x)
        for _ in range(norms):
            y = self.norm(y if layers else x)
        return self.head(y)


@pytest.mark.parametrize("counts", [(2.0, 1.0), (1.0, 0.0), (1.0, 2.0), (0.0, 1.0)])
def test_a_norm_that_does_not_follow_its_layer_in_every_pass_is_named(counts):
    rows = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))
    rows[0, :2] = 1.0
    other = rows.clone()
    other[0, :2] = torch.tensor(counts)
    model = prepared(Sometimes(), rows)
    assert folded(qtool.convert(model)) == ["norm", None]
    with pytest.raises(ConversionError, match="fc: norm is folded into it, and on the proof's"):
        qtool.convert(model, [rows, other])


# what it finds


def test_the_figures_are_kept_and_come_back_from_the_file(tmp_path):
    model = prepared()
    integer = qtool.convert(model)
    proof = integer.qtool.proof
    with torch.no_grad():
        expected, given = model(IMAGES).double(), integer(IMAGES).double()
    apart = (expected - given).abs().amax(1)

    assert (proof.images, proof.layers_compared) == (24, 3)
    assert proof.sigma == pytest.approx(float(expected.std()))
    assert proof.max_abs_difference == pytest.approx(float(apart.max()))
    assert proof.median_abs_difference == pytest.approx(float(apart.median()))
    assert proof.top1_agreement == float((expected.argmax(1) == given.argmax(1)).double().mean())
    assert 0 < proof.largest_layer_difference < 0.1

    path = tmp_path / "m.safetensors"
    save_integer(integer, path, {})
    assert read_about(path)[1].proof == proof


def test_a_file_from_before_there_were_figures_loads(tmp_path):
    integer, path = qtool.convert(prepared()), tmp_path / "m.safetensors"
    save_integer(integer, path, {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["proof"]
    metadata["format"] = "3"  # of before there was a digest
    save_file(load_file(path), path, metadata)

    loaded = load_integer(path, float_net(seed=5))
    assert loaded.qtool.proof is None
    assert torch.equal(loaded(IMAGES), integer(IMAGES))


def test_figures_are_plain_json():
    assert json.loads(json.dumps(qtool.convert(prepared()).qtool.proof.to_json()))["images"] == 24


@torch.no_grad()
def test_a_fault_between_right_layers_is_found_in_the_whole():
    images = [Inputs.of(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)))]
    model = prepared(deep_net(0), images[0].args[0], activations=8)
    integer = qtool.convert(model)
    prove(model, integer, images, [])
    integer[4] = nn.Hardtanh(-0.1, 0.1)  # where a batch norm stood that was folded

    with pytest.raises(ConversionError, match="the integer model disagrees with the fake-quanti"):
        prove(model, integer, images, [])


def test_an_output_that_is_nan_in_both_models_is_no_agreement():
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = float_net()

        def forward(self, x):
            return self.net(x).log()

    with pytest.raises(ConversionError, match="an output is not finite"):
        qtool.convert(prepared(Logarithm()))


def test_values_that_overflow_are_named_by_their_layer():
    model = prepared()
    with torch.no_grad():
        model.conv2.input_quantizer.scale.fill_(3e38)
        model.conv1.weight_quantizer.scale.fill_(1e38)
        model.conv1.weight.mul_(1e37)
        model.bn1.weight.fill_(1e5)

    with pytest.raises(ConversionError, match=r"conv[12]: .*inf"):
        qtool.convert(model)


def test_images_that_are_not_finite_are_named_at_the_layer_that_reads_them():
    bad = IMAGES.clone()
    bad[0, 0, 0, 0] = NAN

    with pytest.raises(ConversionError, match=r"conv1: its input holds nan \(1 of 10368"):
        qtool.convert(prepared(), [bad])


@pytest.mark.parametrize("constant", [True, False])
def test_an_output_that_is_the_same_for_every_image_is_said_to_prove_little(constant):
    net = float_net()
    nn.init.zeros_(net.fc.weight)
    if constant:
        nn.init.constant_(net.fc.bias, 0.3)
    integer = qtool.convert(prepared(net))

    assert (integer.qtool.proof.sigma == 0) == constant
    assert any("proves little" in note for note in integer.qtool.notes)
    assert not any("proves little" in note for note in qtool.convert(prepared()).qtool.notes)


@torch.no_grad()
def test_a_constant_that_became_another_is_refused():
    net = float_net()
    nn.init.zeros_(net.fc.weight)
    nn.init.constant_(net.fc.bias, 0.3)
    model = prepared(net)
    integer = qtool.convert(model)
    integer.fc.register_forward_hook(lambda module, args, output: output + 0.5)
    with pytest.raises(ConversionError, match="all outputs should be one constant"):
        prove(model, integer, [Inputs.of(IMAGES)], [])
    integer = qtool.convert(model)
    integer.register_forward_hook(lambda module, args, output: output + 0.5)
    with pytest.raises(ConversionError, match="all outputs should be one constant"):
        prove(model, integer, [Inputs.of(IMAGES)], [])


def test_sums_that_cancel_are_no_fault_of_the_integer_layer():
    net = float_net()
    net.conv1 = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular", bias=False)
    with torch.no_grad():
        net.conv1.weight[3] = 1000.0
        net.bn1.running_mean[3] = 27_000.0
        net.bn1.running_var[3] = 0.0
    ones = torch.ones(8, 3, 12, 12)
    model = qtool.prepare(net, section(8, 8), ones).eval()
    integer = qtool.convert(model, [ones + 0.01 * IMAGES[:8], ones])

    assert folded(integer)[0] == "bn1"


@torch.no_grad()
def test_one_image_on_a_threshold_may_differ_and_two_may_not():
    model = prepared()
    integer = qtool.convert(model)

    def turned(images: int) -> nn.Module:
        def turn(module, args, output):
            return torch.cat([-output[:images], output[images:]])

        other = copy.deepcopy(integer)
        other.register_forward_hook(turn)
        return other

    batches = [Inputs.of(IMAGES)]
    shares = [prove(model, turned(images), batches, []).top1_agreement for images in (0, 1)]
    assert shares == [1.0, 23 / 24]
    with pytest.raises(ConversionError, match=r"the top class agrees on 0\.9"):
        prove(model, turned(2), batches, [])


def deep_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels in (3, 16, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    for norm in net[1::3][:5]:
        nn.init.normal_(norm.bias, 0, 0.3)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    net.train()
    with torch.no_grad():
        for _ in range(10):
            net(torch.randn(16, 3, 16, 16))
    return net.eval()


def test_what_the_steps_of_biases_change_is_said_and_gone_once_they_are_rounded():
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = prepared(deep_net(0), images, bits=2, activations=2)
    integer = qtool.convert(model)
    assert any("qtool.round_biases" in note for note in integer.qtool.notes)

    qtool.round_biases(model)
    integer = qtool.convert(model)
    assert not integer.qtool.notes
    assert integer.qtool.proof.clear_agreement == 1.0


class Magnified(nn.Module):
    """Makes much of the last bits of a value, as many rounding thresholds in a row do."""

    def forward(self, x):
        return torch.sin(1e7 * x)


def test_what_float32_itself_changes_is_said_and_no_fault():
    net = nn.Sequential(nn.Linear(16, 64), Magnified(), nn.Linear(64, 10))
    images = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    model = prepared(net, images, activations=8)
    qtool.round_biases(model)
    integer = qtool.convert(model)

    (note,) = integer.qtool.notes
    assert "float32 alone moves the outputs" in note
    assert integer.qtool.proof.clear_agreement < 0.98
    integer[2].codes.neg_()
    with pytest.raises(ConversionError, match="2: the integer layer's output differs"):
        prove(model, integer, [Inputs.of(images)], [])


# networks of other forms


class Forms(nn.Module):
    """Calls a layer twice, one by keyword, one on [B, T, F]; returns what is asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        a = self.second(input=self.first(self.first(x)).relu())
        return {
            "sequence": a,
            "tuple": (a, a.mean(1)),
            "dict": {"all": a, "classes": a.argmax(-1)},
            "scalar": a.mean(),
        }[self.form]


@pytest.mark.parametrize("form", ["sequence", "tuple", "dict", "scalar"])
def test_outputs_of_every_form_are_compared(form):
    torch.manual_seed(0)
    rows = torch.randn(16, 5, 6)
    model = prepared(Forms(form), rows, bits=8, activations=8)
    integer = qtool.convert(model)
    proof = integer.qtool.proof
    assert proof.layers_compared == 2
    assert proof.images == 16
    assert proof.top1_agreement is None
    assert proof.median_abs_difference <= 0.1 * proof.sigma + 1e-3

    with torch.no_grad():
        model.first.bias += 3.0
    with pytest.raises(ConversionError, match=r"output( \d:|s) .*differ"):
        prove(model, _ignoring(integer, "first"), [Inputs.of(rows)], [])


def _ignoring(integer: nn.Module, name: str) -> nn.Module:
    """Return the model with a layer in the form of what it was made of, so that only the whole
    model tells of a change there."""
    changed = copy.deepcopy(integer)
    layer = integer_layers(changed)[name]
    plain = nn.Linear(6, 6)
    plain.load_state_dict({"weight": layer.real_weight(), "bias": layer.real_bias()})
    changed.set_submodule(name, plain)
    return changed


class Head(nn.Module):
    """A layer, and what becomes of its output."""

    def __init__(self, then) -> None:
        super().__init__()
        self.fc, self.then = nn.Linear(6, 6), then

    def forward(self, x):
        return self.then(self.fc(x))


def head(then):
    torch.manual_seed(0)
    return prepared(Head(then), torch.randn(16, 6), bits=8, activations=8)


def test_an_output_without_tensors_is_compared_where_it_is_a_number_and_else_said():
    model = head(lambda y: y)  # prepare refuses it where the example shows it
    model.then = lambda y: float(y.sum())
    integer = qtool.convert(model)
    assert not any("no numbers" in note for note in integer.qtool.notes)
    model.then = lambda y: "some words"
    integer = qtool.convert(model)
    assert any("outputs hold no numbers" in note for note in integer.qtool.notes)


def test_outputs_whose_number_a_threshold_decides_are_compared_as_far_as_they_go():
    def chosen(y):
        return {"scores": y, "chosen": y[y > float(y.flatten()[3])]}

    model = head(chosen)
    integer = qtool.convert(model)  # the two see the threshold at the same value
    assert not any("another shape" in note for note in integer.qtool.notes)

    integer.then = lambda y: {"scores": y, "chosen": y[:1].flatten()}
    notes = []
    prove(model, integer, [model.qtool.recording.example], notes)
    assert notes == [
        "1 of 2 outputs have another shape in the integer model, as where a threshold decides how "
        "many there are, and were not compared"
    ]
    integer.then = lambda y: y[:1]
    with pytest.raises(ConversionError, match="no output has the shape"):
        prove(model, integer, [model.qtool.recording.example], [])


def test_a_model_that_computes_in_bfloat16_is_held_to_what_bfloat16_can():
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = float_net()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    integer = qtool.convert(prepared(Short()))
    assert folded(integer) == ["net.bn1", "net.bn2", None]
    assert integer.qtool.proof.layers_compared == 3


def test_random_numbers_in_the_forward_pass_are_the_same_on_both_sides():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = float_net()

        def forward(self, x):
            return F.dropout(self.net(x), 0.5)  # in evaluation, too, as some do by mistake

    integer = qtool.convert(prepared(Noisy(), bits=8, activations=8))
    assert integer.qtool.proof.median_abs_difference < 0.05 * integer.qtool.proof.sigma


def test_a_model_that_writes_into_its_input_leaves_the_batches_alone():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = float_net()

        def forward(self, x):
            return self.net(x.sub_(5.0))

    batch = IMAGES + 5.0
    integer = qtool.convert(prepared(Centred(), batch.clone(), bits=8, activations=8), [batch])
    assert torch.equal(batch, IMAGES + 5.0)
    assert integer.qtool.proof.clear_agreement == 1.0


# nothing disturbs it


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Return float32 values with 10 bits of mantissa, ties to even, by arithmetic on their bits."""
    bits = x.contiguous().view(torch.int32)
    rounded = bits + 0xFFF + ((bits >> 13) & 1)
    return (rounded & ~0x1FFF).view(torch.float32)


class Tf32(TorchFunctionMode):
    """Rounds the factors of convolutions and matrix products where torch is told to allow it."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        allowed = {
            "conv2d": torch.backends.cudnn.conv.fp32_precision,
            "linear": torch.backends.cuda.matmul.fp32_precision,
        }
        if allowed.get(name) == "tf32" and args[0].dtype == torch.float32:
            self.rounded += 1
            args = (tf32(args[0]), tf32(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def allows_tf32():
    operations = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [operation.fp32_precision for operation in operations]
    for operation in operations:
        operation.fp32_precision = "tf32"
    yield
    for operation, precision in zip(operations, before, strict=True):
        operation.fp32_precision = precision


def test_ten_bits_of_mantissa_are_kept():
    step = 2.0**-10
    values = torch.tensor([1.0, 1 + step, 1 + step / 2, 1 + 1.5 * step, -1 - 0.51 * step, 255.0])
    kept = torch.tensor([1.0, 1 + step, 1.0, 1 + 2 * step, -1 - step, 255.0])
    assert torch.equal(tf32(values), kept)
    integers = torch.arange(-2048.0, 2049.0)
    assert torch.equal(tf32(integers), integers)


@pytest.mark.parametrize("bits", [7, 8])
@torch.no_grad()
def test_tf32_disturbs_a_comparison_and_not_the_proof(allows_tf32, bits):
    model = prepared(bits=bits, activations=8)
    with Tf32() as mode:
        integer = qtool.convert(model)
        assert mode.rounded == 0
        layers, x = integer_layers(integer), IMAGES
        plain, exact = model.bn1(model.conv1(x)), layers["conv1"](x)
        assert mode.rounded == 2
    largest = float(exact.abs().max())
    assert float((plain - exact).abs().max()) > 3e-4 * largest  # the proof allows 1e-4
    assert torch.equal(exact, layers["conv1"](x))  # integers of 8 bits stand it

    with pytest.raises(ConversionError, match=r"conv\d: the integer layer's output differs"):
        _prove_carelessly(model, integer)


def _prove_carelessly(model: nn.Module, integer: nn.Module) -> None:
    """Run the proof as it would be if plain float32 were not asked for inside."""

    class Allows(Tf32):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            for operation in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
                operation.fp32_precision = "tf32"
            return super().__torch_function__(func, types, args, kwargs)

    with Allows():
        prove(model, integer, [Inputs.of(IMAGES)], [])


@pytest.mark.parametrize("grid", ["unsigned", "full", "narrow", "asymmetric", "mid_rise"])
@pytest.mark.parametrize("weights", ["narrow", "full", "mid_rise"])
@torch.no_grad()
def test_integer_layers_are_exact_in_tf32_on_every_grid(allows_tf32, grid, weights):
    wide = 1 if grid == "mid_rise" else 8
    choice = {
        "weights": {"bits": 7 if weights == "mid_rise" else 8, "grid": weights},
        "activations": {
            "bits": wide,
            "place": "layer_inputs",
            "grid": grid,
            "range": "ema_min_max",
        },
    }
    if grid == "mid_rise":
        choice["activations"] = {"bits": 1, "place": "layer_inputs", "grid": "mid_rise"}
    integer = qtool.convert(qtool.prepare(float_net(), choice, IMAGES).eval())
    with Tf32() as mode:
        short = integer(IMAGES)
        assert mode.rounded == 3

    assert torch.equal(short, integer(IMAGES))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [7, 8])
def test_the_proof_holds_on_cuda_where_tf32_is_allowed(allows_tf32, bits):
    model = prepared(float_net().cuda(), IMAGES.cuda(), bits=bits, activations=8)
    integer = qtool.convert(model, [IMAGES])
    assert integer.qtool.proof.layers_compared == 3
    layer, x = integer_layers(integer)["conv1"], IMAGES.cuda()
    on_the_cpu = copy.deepcopy(layer).cpu()(IMAGES)
    torch.testing.assert_close(layer(x).cpu(), on_the_cpu, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_what_was_allowed_is_allowed_again_and_nothing_is_inside(precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        net = float_net()
        integer = qtool.convert(prepared(net, bits=8, activations=8))
        assert integer.qtool.proof.clear_agreement == 1.0
        with exact_arithmetic(net):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.deterministic
        with suppress(KeyError), exact_arithmetic(net):
            raise KeyError
        assert torch.get_float32_matmul_precision() == precision  # raises where APIs are mixed
        assert torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_autocast_around_it_changes_nothing():
    model = prepared(bits=8, activations=8)
    plain = qtool.convert(model)
    with torch.autocast("cpu", torch.bfloat16):
        integer = qtool.convert(model)
        inside = integer(IMAGES)

    assert integer.qtool.proof == plain.qtool.proof
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain(IMAGES))


@pytest.mark.parametrize("fault", [None, "numbers", "batches", "layer"])
def test_the_given_model_is_left_as_it_was(fault, monkeypatch):
    model = prepared()
    model.train()
    model.bn2.eval()
    calls = []
    model.conv1.register_forward_hook(lambda *seen: None)
    if fault == "numbers":
        model.fc.bias.data[0] = NAN
    if fault == "layer":
        monkeypatch.setattr("qtool.conversion.difference.TOLERANCE", -1.0)
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    tensors = {key: v.clone() for key, v in model.state_dict().items() if torch.is_tensor(v)}
    kept = model.qtool, vars(model.qtool).copy()
    torch.manual_seed(5)
    if fault is None:
        qtool.convert(model)
    else:
        with pytest.raises((ConversionError, ValueError)):
            qtool.convert(model, [] if fault == "batches" else None)
    after = torch.rand(3)
    torch.manual_seed(5)

    assert torch.equal(after, torch.rand(3))
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert hooks == {name: list(module._forward_hooks) for name, module in model.named_modules()}
    for key, tensor in tensors.items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=0, atol=0, equal_nan=True)
    assert model.qtool is kept[0]
    assert vars(model.qtool) == kept[1]
    assert not calls
