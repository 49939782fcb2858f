"""How the processes of torchrun find each other, on a machine with two GPUs (which are made believe)."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from labeltune.errors import SettingsError
from labeltune.training.distributed import joined


@pytest.fixture
def third_of_three(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The third of three processes; backends: what was begun; gpus: what was taken."""
    place = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    found = SimpleNamespace(backends=[], gpus=[])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", found.gpus.append)
    monkeypatch.setattr(dist, "init_process_group", found.backends.append)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    return found


def test_on_the_cpu_they_leave_the_gpus_alone(third_of_three: SimpleNamespace) -> None:
    with joined(device="cpu") as world:
        assert (world.rank, world.size) == (2, 3)
    assert third_of_three.backends == ["gloo"] and third_of_three.gpus == []


def test_each_takes_the_gpu_of_its_number(third_of_three: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with joined():
        pass
    assert third_of_three.backends == ["nccl"] and third_of_three.gpus == [1]


def test_more_processes_than_gpus_are_refused(third_of_three: SimpleNamespace) -> None:
    with (
        pytest.raises(SettingsError, match=r"the machine has 2 GPUs, and this is its process 3; start at most 2"),
        joined(),
    ):
        pass
    assert not third_of_three.backends
