"""Encoded rows into answers: one way for dev, evaluation, prediction and serving.

Rows are sorted by length, packed under a token budget, run without gradients, decided on while whole documents are at
hand, and put back in order. Decisions are kept, logits are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from labeltune.data.batches import pack, sorted_batches
from labeltune.data.store import Store
from labeltune.labels import LabelSet
from labeltune.metrics import Figures
from labeltune.model.member import LabelModel
from labeltune.schema import Encoded, Example, Prediction
from labeltune.tasks import Calibration, Task

Progress = Callable[[int], None]
"""Called with the number of rows just answered."""


def no_progress(rows: int) -> None:
    """The progress that nobody watches."""


@dataclass(frozen=True)
class Labeller:
    """A member that answers: slice 0 of `model`, its task and labels, and what was fitted on dev.

    budget: most tokens of one forward pass; a longer row is alone in its own.
    """

    model: LabelModel
    task: Task
    labels: LabelSet
    calibration: Calibration
    budget: int

    def predict(
        self,
        examples: Sequence[Example],
        rows: Sequence[Encoded] | Store,
        *,
        min_score: float | None = None,
        all_scores: bool = False,
        progress: Progress = no_progress,
    ) -> list[Prediction]:
        """One prediction per example, in order; `rows` are the examples, encoded."""
        answers: list[Prediction | None] = [None] * len(examples)
        head = self.model.members[0].head
        for numbers, logits_SL, documents_S in self._passes(rows):
            decisions = self.task.decide(logits_SL, documents_S, self.labels, self.calibration, head)
            chosen = self.task.predictions(
                [examples[number] for number in numbers],
                [rows[number].target_span for number in numbers],
                decisions,
                self.labels,
                min_score=min_score,
                all_scores=all_scores,
            )
            for number, prediction in zip(numbers, chosen, strict=True):
                answers[number] = prediction
            progress(len(numbers))
        return [answer for answer in answers if answer is not None]

    def score(self, examples: Sequence[Example], rows: Sequence[Encoded] | Store) -> Figures:
        """The task's metrics on the full gold."""
        return self.task.score(examples, self.predict(examples, rows, all_scores=True), self.labels)

    def calibrate(self, rows: Sequence[Encoded] | Store) -> Calibration:
        """Fit the calibration on labelled rows; logits are kept for this once."""
        logits, targets = [], []
        for numbers, logits_SL, _ in self._passes(rows):
            logits.append(logits_SL)
            targets += [rows[number].labels for number in numbers]
        if not logits:
            return Calibration()
        head = self.model.members[0].head
        return self.task.calibrate(np.concatenate(logits), np.concatenate(targets), self.labels, head)

    def _passes(self, rows: Sequence[Encoded] | Store) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """(row numbers, logits (S, L), target_document (S)) of each forward pass."""
        lengths = (
            rows.lengths if isinstance(rows, Store) else np.array([len(row.tokens) for row in rows], dtype=np.int64)
        )
        device = self.model.backbone.device
        for numbers in sorted_batches(lengths, self.budget):
            batch = pack([[(number, rows[number]) for number in numbers]], device)
            with torch.no_grad():
                (logits_SL,) = self.model(batch)
            yield numbers, logits_SL.float().cpu().numpy(), batch.target_document.cpu().numpy()
