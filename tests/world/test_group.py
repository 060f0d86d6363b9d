"""What two processes tell each other: sums, rows, failures; and how they find each other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from qtool.console import say
from qtool.errors import InputError, TrainingError
from qtool.world import forming
from qtool.world.forming import formed, own_device
from qtool.world.group import Group, LostProcessError, OtherProcessError
from qtool.world.world import World
from tests.training.several import in_processes, launched_as


def refused(world: World, make: Callable[[], object]) -> str:
    """Return what `from_first` says in this process of a `make` that fails."""
    try:
        world.from_first(make)
    except (InputError, OtherProcessError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def fail() -> None:
    raise InputError("no such file")


def gone_through(world: World, count: int, *, fails: bool) -> list[str]:
    """Return what `in_step` yields of some items, and how it ends."""

    def items() -> Iterator[int]:
        yield from range(count)
        if fails:
            raise TrainingError("no such image")

    seen = []
    try:
        for item in world.in_step(items()):
            seen.append(str(item))  # noqa: PERF401 - what went before a failure counts
    except (TrainingError, OtherProcessError) as error:
        seen.append(f"{type(error).__name__}: {error}")
    return seen


def told(world: World) -> dict[str, object]:
    """Return what this process has of the other, by every way of asking."""
    rank = world.rank
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    model[0].weight.fill_(rank)
    model[1].num_batches_tracked += 5 * rank
    world.same_everywhere(model)
    mean = [torch.tensor([1.0, 3.0]) + 4 * rank, torch.tensor(float(rank))]
    world.average_in_place(mean)
    first = [torch.tensor([rank + 7]), torch.tensor([rank + 0.5]), torch.tensor([rank + 1.5])]
    world.copy_from_first(first)
    rows = torch.arange(5.0)[rank::2, None] * torch.ones(2)
    return {
        "widest": world.widest(torch.tensor([-1.0 - rank, 2.0 * rank])).tolist(),
        "rows": world.all_rows(rows)[:, 0].tolist(),
        "no rows": world.all_rows(torch.full((2 + 2 * rank,), float(rank))).tolist(),
        "numbers": world.all_rows(torch.tensor(float(rank))).tolist(),
        "each": world.each(torch.tensor([rank])).tolist(),
        "sum": world.add_up(torch.tensor([1 + rank])).tolist(),
        "mean": [m.tolist() for m in mean],
        "first": [f.tolist() for f in first],
        "weight": sorted(set(model[0].weight.flatten().tolist())),
        "batches": int(model[1].num_batches_tracked),
        "sums": world.sums([rank, 0.5]),
        "largest": world.largest(10 - rank),
        "made": world.from_first(lambda: f"by {rank}"),
        "told": world.told(f"process {rank}"),
        "refused": refused(world, fail),
        "both end": gone_through(world, 2, fails=False),
    }


def failures(world: World) -> list[list[str]]:
    """Return what each process sees of what fails in the second alone, and in the first alone."""
    return [gone_through(world, 3, fails=world.rank == one) for one in (1, 0)]


def test_two_processes_have_the_same_answers(tmp_path: Path) -> None:
    first, second = in_processes(told, 2, tmp_path)

    assert second == {**first, "refused": "OtherProcessError: no such file"}
    assert first == {
        "widest": [-2.0, 2.0],
        "rows": [0.0, 1.0, 2.0, 3.0, 4.0],
        "no rows": [0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        "numbers": [0.0, 1.0],
        "each": [[0], [1]],
        "sum": [3],
        "mean": [[3.0, 5.0], 0.5],
        "first": [[7], [0.5], [1.5]],
        "weight": [0.0],
        "batches": 0,
        "sums": [1.0, 1.0],
        "largest": 10,
        "made": "by 0",
        "told": ["process 0", "process 1"],
        "refused": "InputError: no such file",
        "both end": ["0", "1"],
    }


def test_what_fails_in_one_process_is_raised_in_both(tmp_path: Path) -> None:
    (late, early), (own, other) = in_processes(failures, 2, tmp_path)

    assert late == ["0", "1", "2", "OtherProcessError: no such image"]
    assert own == ["0", "1", "2", "TrainingError: no such image"]
    assert early == ["0", "1", "2", "TrainingError: no such image"]
    assert other == ["0", "1", "2", "OtherProcessError: no such image"]


def forms(_: World, failing: int) -> dict[str, object]:
    """Return what a process sees that torchrun has started, and how that ends."""
    seen: dict[str, object] = {"device": own_device("cpu"), "auto": own_device("auto")}
    try:
        with formed("cpu") as world:
            seen |= {"rank": world.rank, "told": world.told(str(world.rank)), "first": world.first}
            say("one speaks")
            if world.rank == failing:
                raise TrainingError("no such image")
            if failing >= 0:
                world.largest(1)
    except TrainingError as error:
        seen["failed"] = str(error)
    except OtherProcessError as error:
        seen["other"] = str(error)
    return seen


def test_processes_form_a_group_by_the_environment_of_torchrun(tmp_path: Path) -> None:
    first, second = in_processes(forms, 2, tmp_path, -1, formed=False)

    both = {"told": ["0", "1"], "device": "cpu", "auto": "auto"}
    assert first == both | {"rank": 0, "first": True}
    assert second == both | {"rank": 1, "first": False}


def test_a_process_that_fails_leaves_word_for_those_that_wait_for_it(tmp_path: Path) -> None:
    first, second = in_processes(forms, 2, tmp_path, 1, formed=False)

    assert second["failed"] == "no such image"
    assert first["other"] == "no such image"


def test_processes_that_do_not_come_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: str) -> None:
        raise RuntimeError("The client socket has timed out\nmore")

    for key, said in launched_as(0, 2, 1).items():
        monkeypatch.setenv(key, said)
    monkeypatch.setattr(forming, "rendezvous", never)

    with (
        pytest.raises(LostProcessError, match="2 processes did not find each other: The client"),
        formed("cpu"),
    ):
        pass


@pytest.mark.parametrize(
    ("wanted", "devices", "expected"),
    [
        ("cuda:0", 2, "each of which takes a device of its own; choose auto, cpu or cuda"),
        ("cuda", 1, "this machine has 1 CUDA devices for 2 processes; lower --nproc-per-node"),
        ("cuda", 2, ""),
        ("auto", 2, ""),
    ],
)
def test_each_process_has_a_device_of_its_own(
    monkeypatch: pytest.MonkeyPatch, wanted: str, devices: int, expected: str
) -> None:
    for key, said in launched_as(1, 2, 1).items():
        monkeypatch.setenv(key, said)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)

    if not expected:
        assert own_device(wanted) == "cuda:1"
        return
    with pytest.raises(InputError, match=expected):
        own_device(wanted)


def test_an_error_of_a_connection_means_that_a_process_has_ended() -> None:
    group = Group.__new__(Group)
    group.rank, group.size, group.store = 0, 2, None

    meant = group.meant_by(RuntimeError("[gloo] Connection closed by peer"))

    assert isinstance(meant, LostProcessError)
    assert "another of the 2 processes of this training has ended" in str(meant)
    other = RuntimeError("a shape is wrong")
    assert group.meant_by(other) is other
