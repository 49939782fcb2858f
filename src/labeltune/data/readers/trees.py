"""Sentences as labelled trees, one a line, as the Stanford Sentiment Treebank comes: the root's label and the leaves.

(3 (2 It) (4 (2 's) (4 fine)))    ->    label 3, text "It 's fine"
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from labeltune.data.readers.lines import Lines
from labeltune.data.readers.rows import Row, faulty

_PIECE = re.compile(r"\(|\)|[^\s()]+")
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_ROOT = re.compile(r"\s*\([0-9]+\s")


def looks_like_trees(sample: Sequence[str]) -> bool:
    """Is every line a tree whose root has a number?"""
    return all(_ROOT.match(line) and parse_tree(line) is not None for line in sample)


def read_trees(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """A tree a line; blank lines are none."""
    with Lines(path, name) as lines:
        for line in lines:
            fault = lines.take_fault()
            if fault:
                yield Row(lines.at, {"raw": line}, fault)
            elif line.strip():
                yield _row(line, lines.at)


def _row(line: str, at: str) -> Row:
    found = parse_tree(line)
    if found is None:
        return faulty(at, "this is no tree", "a line looks like (3 (2 It) (4 works))", line.rstrip("\r\n"))
    label, leaves = found
    return Row(at, {"label": label, "text": " ".join(leaves)})


def parse_tree(line: str) -> tuple[str, list[str]] | None:
    """The root's label and the leaves; None where brackets do not close, or a node has no label or nothing in it."""
    root: str | None = None
    leaves: list[str] = []
    depth, before, after = 0, "", "("
    for piece in _PIECE.findall(line):
        if piece == "(":
            if after != "(" and depth == 0:
                return None  # a second tree
            depth += 1
        elif piece == ")":
            if depth == 0 or before in ("(", "label"):
                return None
            depth -= 1
        elif before == "(":
            root = piece if root is None else root
            before = "label"
            after = ""
            continue
        elif before == "label":
            leaves.append(_BRACKETS.get(piece, piece))
        else:
            return None
        before = piece if piece in "()" else "leaf"
    return (root, leaves) if root is not None and leaves and depth == 0 else None
