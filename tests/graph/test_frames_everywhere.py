"""What stands at calls works wherever a model runs: threads, checkpoints, modes, ranks, files."""

import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import install
from qtool.graph.sites.running import apart
from qtool.graph.sites.value_graph import Counts
from qtool.graph.sites.value_tape import record_values
from tests.graph.test_paths import Counter


class Halved(nn.Module):
    """Halves what a call returns, exactly, and says so to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def at(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        result = function(*args, **kwargs)
        return F.relu(result) * self.weight if isinstance(result, Tensor) else result


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.conv(x)))
        return F.relu(x + y)


class Net(nn.Module):
    """Blocks, of which gradient checkpoints run some again."""

    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.blocks, self.fc = nn.Sequential(Block(), Block()), nn.Linear(3, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.fc(F.relu(x).mean((2, 3)))


def sited(*, reentrant: bool | None = None) -> Net:
    torch.manual_seed(0)
    model = Net(reentrant=reentrant).eval()
    x = torch.randn(2, 3, 4, 4)
    plain = Net().eval()
    graph = record_values(plain, Inputs.of(x))
    functions = ("add", "relu", "batch_norm")
    sites = {o.site: Halved() for o in graph.operations if o.function in functions}
    install(model, sites, graph.counts)
    return model


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_gradient_checkpoint_runs_a_block_as_it_ran_before(reentrant: bool) -> None:
    x = torch.randn(2, 3, 4, 4)
    expected = gradients(sited(), x)
    found = gradients(sited(reentrant=reentrant), x)
    assert len(expected) == len(found) == 1 + 2 * 4 + 2 * 4 + 3
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_threads_do_not_mix_their_blocks() -> None:
    model = sited()
    images = torch.randn(8, 2, 3, 4, 4)
    with torch.no_grad():
        expected = [model(x) for x in images]
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(first: int) -> None:
        start.wait()
        with torch.no_grad():
            for number in range(first, first + 60):
                place = number % len(images)
                if not torch.equal(model(images[place]), expected[place]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "context",
    [
        torch.inference_mode,
        lambda: torch.device("cpu"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["inference", "device", "autocast"],
)
def test_it_works_within_other_modes(
    context: Callable[[], AbstractContextManager[object]],
) -> None:
    model, x = sited(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = model(x)
    with context():
        torch.testing.assert_close(model(x).float(), expected, atol=0.02, rtol=0.02)
    assert torch._C._len_torch_function_stack() == 0


class Placed(nn.Module):
    """Enters another mode in its forward, within which a part runs apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            x = self.linear(F.relu(x))
            return F.relu(x + apart(F.relu, x))


def test_what_runs_apart_is_not_counted_within_a_mode_of_the_models() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Placed()), torch.randn(2, 3)
    linear = model[0].linear
    counts = {"0": ({("", "relu"): 2},)}
    install(model, {CallSite("0", "relu", 1, call=1): Halved()}, counts)
    expected = F.relu(linear(F.relu(x)) + F.relu(linear(F.relu(x)))) * 0.5
    assert torch.equal(model(x), expected)


def test_channels_last_and_other_sizes() -> None:
    model = sited()
    with torch.no_grad():
        for shape in ((1, 3, 4, 4), (5, 3, 6, 7)):
            x = torch.randn(shape)
            last = copy_of(model).to(memory_format=torch.channels_last)
            found = last(x.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(found, model(x))


def test_saved_whole_and_loaded() -> None:
    model, x = sited(), torch.randn(2, 3, 4, 4)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))


def test_one_block_of_a_model_compiled() -> None:
    model, x = sited(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    twin = copy_of(model)
    twin.blocks[0].compile(fullgraph=True, backend="aot_eager")
    assert torch.equal(twin(x), expected)
    assert torch.equal(twin(x), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_traces_through_it() -> None:
    model, x = sited(), torch.randn(2, 3, 4, 4)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=batch, verbose=False)
    assert program is not None
    other = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(program(other)[0], model(other))


def _rank(rank: int, folder: str) -> None:
    """Train one step with two ranks, and save the gradients that they share."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    model = DistributedDataParallel(sited())
    x = torch.linspace(-1, 1, 4 * 48).reshape(4, 3, 4, 4)
    model(x[2 * rank : 2 * rank + 2]).square().sum().backward()
    torch.save([p.grad for p in model.module.parameters()], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_gradients(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    x = torch.linspace(-1, 1, 4 * 48).reshape(4, 3, 4, 4)
    model = sited()
    expected = gradients(model, x)[1:]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b * 2, a)


def recorded(model: nn.Module, x: Tensor) -> tuple[dict[CallSite, nn.Module], dict[str, Counts]]:
    sites: dict[CallSite, nn.Module] = {}
    counts: dict[str, tuple[Counts, ...]] = {}
    for training in (False, True):
        graph = record_values(model.train(training), Inputs.of(x))
        sites |= {o.site: Counter() for o in graph.operations if o.function != "other"}
        for block, ways in graph.counts.items():
            counts[block] = (*counts.get(block, ()), *ways)
    return sites, counts


NETWORKS = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "googlenet",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_call_of_published_networks_has_its_site(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None)
    x = torch.randn(2, 3, 64, 64)
    sites, counts = recorded(model, x)
    twin = copy_of(model)
    install(twin, sites, counts)
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), model.eval()(x))
        dropped = {site for site in sites if site.function == "dropout"}
        assert {stand.calls for site, stand in sites.items() if site not in dropped} <= {0, 1}
        called = record_values(model, Inputs.of(x)).operations
        assert all(sites[o.site].calls == 1 for o in called if o.site in sites.keys() - dropped)
        outputs = []
        for network in (model.train(), twin.train()):
            torch.manual_seed(1)
            made = network(x)
            outputs.append(made if isinstance(made, Tensor) else made[0])
    assert torch.equal(*outputs)
