"""Which of several processes speaks."""

from __future__ import annotations

import os


def speaks() -> bool:
    """Whether this process prints and writes: of those that torchrun starts, the first does for all."""
    return os.environ.get("RANK", "0") == "0"
