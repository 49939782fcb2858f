"""A stream's documents as runs: stretches of neighbours of one length and one direction, each one call of a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Run:
    """`documents` neighbours of `length` tokens each; `both` where they look both ways."""

    documents: int
    length: int
    both: bool


@lru_cache(maxsize=256)
def runs_of(lengths: tuple[int, ...], slice_documents: tuple[int, ...], both: tuple[bool, ...]) -> tuple[Run, ...]:
    """Group the stream's documents into runs, without empty ones; `both` holds each slice's direction in one layer."""
    runs: list[Run] = []
    for document, length in directed(lengths, slice_documents, both):
        last = runs[-1] if runs else None
        if not length:
            continue
        if last is not None and (last.length, last.both) == (length, document):
            runs[-1] = Run(last.documents + 1, length, document)
        else:
            runs.append(Run(1, length, document))
    return tuple(runs)


def directed(
    lengths: tuple[int, ...], slice_documents: tuple[int, ...], both: tuple[bool, ...]
) -> Iterator[tuple[bool, int]]:
    """Each document's direction and length, in stream order."""
    for k, direction in enumerate(both):
        for length in lengths[slice_documents[k] : slice_documents[k + 1]]:
            yield direction, length
