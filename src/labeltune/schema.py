"""The nouns of the house, shared by all rooms; nothing here imports torch.

Shapes: N tokens, D packed documents (one per window), P pieces, S targets, K slices, L labels.

A label sits on a span. A *target* is what carries one label: the whole text, or one unit (word) of it. A *piece* is the
token range of one target inside one window; a target that no window holds whole has several pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Label = str | float | tuple[str, ...]  # classification/ordinal | regression | multilabel


@dataclass(frozen=True, slots=True)
class Span:
    """A labelled range of characters, half-open: `text[start:end]` carries `label`."""

    start: int
    end: int
    label: str

    def within(self, text: str) -> Span:
        """The span without the white space at its ends; as it is where it covers nothing else."""
        piece = text[self.start : self.end]
        if not piece.strip():
            return self
        start = self.start + len(piece) - len(piece.lstrip())
        return Span(start, start + len(piece.strip()), self.label)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the user's data.

    id: the row's address, `train.jsonl:17`; unique within a data set.
    text: what the model reads, after the template.
    label: the document's label, or None (unlabelled, or a tagging row).
    spans: gold spans of a tagging row, sorted, not overlapping; None where the row has none to give.
    units: character ranges of given tokens, sorted; None where units must be found in the text.
    fields: the row as it came, for templates, groups and the output of `predict`.
    room: the character range of the field that may be shortened (`data.long_field`); None for the whole text.
    body: where the column that spans sit on lies in a templated text; predicted spans count from its start.
    """

    id: str
    text: str
    label: Label | None = None
    spans: tuple[Span, ...] | None = None
    units: tuple[tuple[int, int], ...] | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    room: tuple[int, int] | None = None
    body: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in token coordinates. Tokens of all its windows are concatenated; pieces never cross a window.

    tokens: int32 (n), the ids of all windows, special tokens included.
    window_lengths: int32 (W), summing to n.
    piece_start, piece_end: int32 (p), half-open ranges in `tokens`; what the pooling reads.
    piece_weight: int32 (p), how many tokens of the target this piece owns.
    piece_target: int32 (p), the index of the piece's target, ascending.
    target_span: int32 (t, 2), the character range of each target in the example's text.
    labels: int64 (t), float32 (t) or float32 (t, L); -1 (or NaN) where the row is unlabelled.
    dropped_units, dropped_characters: what `data.long = "truncate"` cut off (words that keep no token; characters).
    """

    tokens: np.ndarray
    window_lengths: np.ndarray
    piece_start: np.ndarray
    piece_end: np.ndarray
    piece_weight: np.ndarray
    piece_target: np.ndarray
    target_span: np.ndarray
    labels: np.ndarray
    dropped_units: int = 0
    dropped_characters: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed stream of K slices, no padding; slice k belongs to member k.

    input_ids, position_ids: int64 (N). Positions start at 0 in each packed document.
    token_row, token_index: int64 (N), the address of a token: its row in the data set, its place in the row.
    cu_seqlens: int64 (D + 1) on the CPU, boundaries of the packed documents (windows).
    piece_starts, piece_ends, piece_target: int64 (P), in stream and batch coordinates; piece_weights: float32 (P).
    target_document: int64 (S), which row of the batch a target belongs to, ascending within a slice.
    slice_tokens, slice_documents, slice_pieces, slice_targets: K + 1 boundaries each.
    labels: per slice, int64 (S_k), float32 (S_k) or float32 (S_k, L_k).
    rows: per slice, the data set's row numbers in the order of the stream.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_row: torch.Tensor
    token_index: torch.Tensor
    cu_seqlens: torch.Tensor
    piece_starts: torch.Tensor
    piece_ends: torch.Tensor
    piece_target: torch.Tensor
    piece_weights: torch.Tensor
    target_document: torch.Tensor
    slice_tokens: tuple[int, ...]
    slice_documents: tuple[int, ...]
    slice_pieces: tuple[int, ...]
    slice_targets: tuple[int, ...]
    labels: tuple[torch.Tensor, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class SpanPrediction:
    """A predicted span: characters `start:end` of the text; score is the geometric mean of its units' probabilities."""

    start: int
    end: int
    label: str
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one row. Exactly one of `label`, `labels`, `value`, `spans` carries the answer.

    label, score: single label (`label` is None when the model abstains). `value` stands beside them for `ordinal`.
    labels, scores: multi-label. scores holds every label's probability on request, for a single label too.
    value: regression.
    spans: tagging.
    """

    id: str
    label: str | None = None
    score: float | None = None
    labels: tuple[str, ...] | None = None
    scores: Mapping[str, float] | None = None
    value: float | None = None
    spans: tuple[SpanPrediction, ...] | None = None


def in_column(example: Example, prediction: Prediction) -> Prediction:
    """Spans found in a templated text, counted from the start of the column that the gold spans sit on.

    What was found in the template's other fields has no place in that column and is left out.
    """
    if prediction.spans is None or example.body is None:
        return prediction
    start, end = example.body
    inside = (span for span in prediction.spans if start <= span.start and span.end <= end)
    return replace(prediction, spans=tuple(replace(s, start=s.start - start, end=s.end - start) for s in inside))
