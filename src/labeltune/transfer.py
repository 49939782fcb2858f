"""From the host to the device, without waiting for it."""

from __future__ import annotations

import torch


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on the device. To CUDA it goes through pinned memory: a plain copy waits until the device is idle."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
