"""Tasks that say one thing of a whole text: a document is one target, and has one answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from labeltune.errors import SettingsError
from labeltune.labels import LabelSet
from labeltune.model.settings import HeadConfig
from labeltune.schema import Example, Prediction
from labeltune.tasks.task import Chained, Decisions, Loss, Task


class DocumentTask(Task):
    """The base of the rows whose target is the document."""

    targets: ClassVar[Literal["document", "units"]] = "document"

    def loss(
        self, settings: HeadConfig, labels: LabelSet, counts: np.ndarray | None, head: Chained | None = None
    ) -> Loss:
        """One of `losses`; a CRF has nothing to connect."""
        if settings.crf:
            raise SettingsError(f"{self.name} has no sequence of tags", at="head.crf", hint="set it to false")
        return self._plain_loss(settings, labels, counts)

    def predictions(
        self,
        examples: Sequence[Example],
        target_spans: Sequence[np.ndarray],
        decisions: Decisions,
        labels: LabelSet,
    ) -> list[Prediction]:
        """Each document's answer put into words."""
        rows = zip(examples, decisions.answers, decisions.probabilities, strict=True)
        return [self.prediction(example, a, p, labels) for example, a, p in rows]

    @abstractmethod
    def prediction(
        self, example: Example, answer: np.ndarray, probabilities: np.ndarray, labels: LabelSet
    ) -> Prediction:
        """One document's answer and probabilities, an entry and a row of `Decisions`, in words."""

    def read_part(self, example: Example, target_spans: np.ndarray) -> Example:
        """The row as it is: a document's label stays, however little of it was read."""
        return example
