"""With place: every_value, prepared and integer models go wherever a float model goes."""

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import qtool
from qtool.errors import ModelError
from qtool.graph.copies import copy_of
from qtool.graph.sites.frames import sites_of
from qtool.graph.sites.late_hooks import hook_of
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.steps import Steps

SECTION = {
    "weights": {"bits": 4, "estimator": "straight_through"},
    "activations": {"bits": 4, "place": "every_value", "estimator": "clipped_relu"},
}


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.down = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.relu(self.down(self.pool(x)))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.act, self.gate, self.relu = nn.Hardswish(), Gate(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))
        y += x
        return self.relu(y)


class Net(nn.Module):
    """An addition, a gate, poolings, a concatenation and a norm that stays; [B, 3, H, W] to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.block, self.pool, self.side = Block(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.block(self.stem(x)))
        x = torch.cat([x, F.silu(self.side(x))], 1)
        x = F.relu(self.last(F.relu(self.norm(x))))
        return self.head(self.drop(x.mean((2, 3))))


IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = qtool.prepare(Net().train(), SECTION, IMAGES)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        model(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@cache
def models() -> dict[str, nn.Module]:
    prepared = trained().eval()
    return {"prepared": prepared, "integer": qtool.convert(prepared)}


@pytest.fixture(params=["prepared", "integer"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return models()[request.param]


def loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    found = torch.load(file, weights_only=False)
    assert isinstance(found, nn.Module)
    return found


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": deepcopy,
    "copy_of": copy_of,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": loaded,
}


@pytest.mark.parametrize("name", COPIES)
@torch.no_grad()
def test_a_copy_computes_the_same_by_itself(model: nn.Module, name: str) -> None:
    twin, expected = COPIES[name](model), model(IMAGES)
    assert isinstance(twin, Net)
    assert sites_of(twin).keys() == sites_of(model).keys()
    assert torch.equal(twin(IMAGES), expected)
    for buffer in twin.buffers():
        buffer.zero_()
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(IMAGES), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_traced(model: nn.Module) -> None:
    traced = torch.jit.trace(model, IMAGES, check_trace=False)
    assert torch.equal(traced(IMAGES[:3]), model(IMAGES[:3]))


@torch.no_grad()
def test_other_sizes_batches_formats_and_modes(model: nn.Module) -> None:
    for shape in ((1, 3, 12, 12), (5, 3, 12, 12), (2, 3, 20, 16)):
        images = torch.randn(shape)
        expected = model(images)
        each = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(expected, each)
        last = images.to(memory_format=torch.channels_last)
        twin = deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(twin(last), expected)
        with torch.inference_mode():
            assert torch.equal(model(images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "forward"])
@torch.no_grad()
def test_compiled_without_breaks(model: nn.Module, part: str) -> None:
    whole = {"model": model, "forward": model.forward}[part]
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


@pytest.mark.slow
def test_an_integer_model_is_compiled_where_gradients_are_on() -> None:
    integer = models()["integer"]
    compiled = torch.compile(integer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES).detach(), integer(IMAGES).detach())


def test_an_integer_model_begins_no_steps() -> None:
    prepared, integer = models()["prepared"], models()["integer"]
    assert len(prepared._forward_pre_hooks) > len(integer._forward_pre_hooks)
    hooks = map(hook_of, integer._forward_pre_hooks.values())
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    assert not any(isinstance(owner, Steps) for owner in owners)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [True, False])
@torch.no_grad()
def test_exported_with_a_batch_of_any_size(model: nn.Module, strict: bool) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=shapes, strict=strict)
    for images in (IMAGES[:1], torch.cat([IMAGES, IMAGES[:1]])):
        torch.testing.assert_close(program.module()(images), model(images))


def train(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Make two steps begun by hand, without dropout; return what they leave."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    for _ in range(2):
        qtool.begin_step(model)
        forward(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [tensor.detach() for tensor in model.state_dict().values()]


@pytest.mark.slow
def test_compiled_training_is_that_of_the_model() -> None:
    outcomes = []
    for compiled in (False, True):
        model = trained()
        model.drop.eval()
        qtool.begin_step(model)
        forward = model.forward
        if compiled:
            forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        outcomes.append(train(model, forward))
    for plain, traced in zip(*outcomes, strict=True):
        torch.testing.assert_close(traced, plain)


@pytest.mark.slow
@pytest.mark.parametrize("size", [12, 20])
@torch.no_grad()
def test_a_file_takes_any_batch(size: int, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    integer = models()["integer"]
    path = tmp_path / "model.onnx"
    qtool.export_onnx(integer, torch.randn(2, 3, size, size), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images = torch.randn(batch, 3, size, size)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), integer(images), atol=1e-5, rtol=1e-5)


def relu_of_output(module: nn.Module, args: object, output: Tensor) -> None:
    """Call what the sites count, as a hook that only looks may."""
    F.relu(output + output).mean((2, 3))


def relu_of_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    F.relu(args[0] + 1)


@pytest.mark.parametrize("name", ["", "stem", "block", "block.act", "block.conv1", "pool"])
@torch.no_grad()
def test_what_a_later_hook_calls_is_not_counted(model: nn.Module, name: str) -> None:
    expected = model(IMAGES)
    hooked = deepcopy(model)
    module = hooked.get_submodule(name)
    before = module.register_forward_pre_hook(relu_of_input)
    after = module.register_forward_hook(relu_of_output, prepend=True) if name else before
    for twin in (hooked, pickle.loads(pickle.dumps(hooked))):
        assert torch.equal(twin(IMAGES), expected)
    before.remove()
    after.remove()
    assert relu_of_input not in map(hook_of, module._forward_pre_hooks.values())
    assert torch.equal(hooked(IMAGES), expected)


def test_a_later_hook_may_change_values_and_is_converted() -> None:
    prepared, doubled = trained().eval(), trained().eval()
    doubled.stem.register_forward_hook(lambda module, args, output: F.relu(output + output))
    with torch.no_grad():
        doubled(IMAGES)
        assert not torch.equal(doubled(IMAGES), prepared(IMAGES))
        integer = qtool.convert(doubled)
        torch.testing.assert_close(integer(IMAGES), doubled(IMAGES), atol=0.1, rtol=0.1)


@torch.no_grad()
def test_a_hook_that_was_recorded_is_a_part_of_the_network() -> None:
    net = Net().eval()
    net.side.register_forward_hook(lambda module, args, output: F.relu(output))
    model = qtool.prepare(net, SECTION, IMAGES).eval()
    model(IMAGES)
    model.side._forward_hooks.clear()
    with pytest.raises(ModelError, match="relu"):
        model(IMAGES)


@pytest.mark.slow
@torch.no_grad()
def test_a_later_hook_is_compiled(model: nn.Module) -> None:
    hooked = deepcopy(model)
    hooked.get_submodule("block.act").register_forward_hook(relu_of_output)
    compiled = torch.compile(hooked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


def _rank(rank: int, folder: str) -> None:
    """Train two steps with two ranks, and save what they leave."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    model = trained()
    model.drop.eval()
    model.norm.eval()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(2):
        parallel(IMAGES[2 * rank : 2 * rank + 2]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = {name: p.detach() for name, p in model.named_parameters()}
    torch.save(kept, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_the_same_model(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = dict(trained().named_parameters())
    assert first.keys() == second.keys() == start.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = [name for name in first if not torch.equal(first[name], start[name])]
    assert "block.conv1.weight" in moved
    assert "block.sites.add0.scale" in moved or "block.sites.relu0.scale" in moved


def test_the_placement_is_kept_by_copies() -> None:
    model = models()["prepared"]
    kept = prepared_state(COPIES["pickle"](model)).placement
    assert kept.sites.keys() == prepared_state(model).placement.sites.keys() > set()
