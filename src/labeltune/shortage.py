"""Memory that runs out: how it is known, and how what the failed work held is given back."""

from __future__ import annotations

from collections.abc import Callable

import torch

NO_MEMORY = ("out of memory", "can't allocate memory", "unable to allocate", "cublas_status_alloc_failed")


def fits(work: Callable[[], object]) -> bool:
    """Do the work; False where there is too little memory for it, and then nothing of it is held any longer."""
    try:
        work()
        return True
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
    if torch.cuda.is_available():  # only here, for up to the end of `except` the error's frames hold their tensors
        torch.cuda.empty_cache()
    return False


def memory_ran_out(error: Exception) -> bool:
    """CUDA has an error of its own for it; its libraries, the CPU's allocator and NumPy say it in words."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in NO_MEMORY)
