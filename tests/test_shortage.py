"""Memory that runs out is known by what is said of it, and nothing of the failed work is held."""

import weakref

import pytest
import torch

from labeltune.shortage import fits, memory_ran_out


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_shortage_is_known_by_its_words(said: str) -> None:
    assert memory_ran_out(RuntimeError(said)) and not memory_ran_out(RuntimeError("shapes do not match"))


def test_what_failed_work_held_is_gone_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def work() -> None:
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[0]() is not None))
    assert not fits(work) and alive == [False]
    assert fits(lambda: None) and alive == [False]


def test_another_fault_stays_one() -> None:
    with pytest.raises(ZeroDivisionError):
        fits(lambda: 1 / 0)
