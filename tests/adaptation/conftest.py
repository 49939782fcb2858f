"""Small texts, and rows by hand."""

from pathlib import Path

import numpy as np
import pytest

from labeltune.adaptation.objectives import Row

WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()


def sentences(count: int, start: int = 0) -> list[str]:
    """Different texts of 3 to 19 words."""
    return [" ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(3 + i % 17)) for i in range(start, start + count)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sixty documents, two of them longer than a context of 256 bytes."""
    return [*sentences(58), " ".join(WORDS * 9), "\n".join(sentences(12, 60))]


@pytest.fixture
def text_file(tmp_path: Path, texts: list[str]) -> Path:
    """The documents, parted by empty lines."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows_of():
    """A function: lists of token ids to rows that predict everything behind the first token."""

    def build(documents: list[list[int]], first: int = 1) -> list[Row]:
        return [Row(n, np.array(ids, np.int32), first, len(ids)) for n, ids in enumerate(documents)]

    return build
