"""A run as a server holds it: rows into encoded texts, logits into answers, on a backbone that it shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from labeltune.answers import Wish
from labeltune.assembly import fresh_member, make_encoder, task_of
from labeltune.config import Config
from labeltune.data.encoding import Encoder
from labeltune.data.items import Items
from labeltune.labels import LabelSet
from labeltune.model.backbone import Backbone
from labeltune.model.checkpoints import load_tokenizer
from labeltune.model.member import Member
from labeltune.run import TOKENIZER, Run
from labeltune.schema import Encoded, Example, Prediction
from labeltune.tasks import Calibration, Task


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run says of one row, `example` as it was read; logits: float32 (S, L) of its targets."""

    hosted: Hosted
    example: Example
    prediction: Prediction
    logits: np.ndarray
    tokens: int


@dataclass(frozen=True, eq=False)
class Hosted:
    """One run, loaded. Compared by identity: the same run loaded again is another."""

    name: str
    run: Run
    config: Config
    task: Task
    encoder: Encoder
    member: Member
    calibration: Calibration

    @property
    def labels(self) -> LabelSet:
        """The run's label set, in the order of its logits."""
        return self.run.labels

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that its template joins, in order; `text` without a template."""
        return self._items.fields

    def read(self, item: str | Mapping[str, object], at: str) -> Example:
        """A text, or a row with the columns of the training data, as an example; a DataError where it is none."""
        return self._items.read(item, at)

    def encode(self, examples: Sequence[Example], *, truncate: bool = False) -> list[Encoded]:
        """Each text by itself, whatever stands beside it. truncate: cut what one window does not hold.

        Raises:
            TooLong, DataError: a text that does not fit, or cannot be tokenised.
        """
        encoder = self._cutting if truncate else self.encoder
        return [encoder.encode(example) for example in examples]

    def answers(
        self,
        examples: Sequence[Example],
        rows: Sequence[Encoded],
        wish: Wish,
        logits_SL: np.ndarray,
        document_S: np.ndarray,
    ) -> list[Answer]:
        """Decide on the logits (S, L) of whole documents; document_S (S) numbers the examples from 0."""
        decisions = self.task.decide(logits_SL, document_S, self.labels, self.calibration, self.member.head)
        spans = [row.target_span for row in rows]
        said = map(wish.of, self.task.predictions(examples, spans, decisions, self.labels))
        bounds = np.searchsorted(document_S, np.arange(len(examples) + 1))
        places = zip(examples, said, bounds, bounds[1:], rows, strict=False)
        return [Answer(self, e, p, logits_SL[first:last], len(row.tokens)) for e, p, first, last, row in places]

    @cached_property
    def _items(self) -> Items:
        return Items(self.config.data, self.task.name)

    @cached_property
    def _cutting(self) -> Encoder:
        config = self.config.model_copy(update={"data": self.config.data.model_copy(update={"long": "truncate"})})
        return make_encoder(config, self.task, self.labels, self.encoder.tokenizer)


def host(name: str, run: Run, config: Config, backbone: Backbone) -> Hosted:
    """Load a run's member, tokenizer and decision; the backbone is only looked at, so it may be computing.

    Raises:
        RunError, SettingsError, ModelError: weights that are missing or do not fit this backbone.
    """
    task = task_of(config)
    tokenizer = load_tokenizer(config.model, run.folder / TOKENIZER)
    member = fresh_member(config, task, run.labels, backbone)
    member.load(run.folder)
    encoder = make_encoder(config, task, run.labels, tokenizer)
    return Hosted(name, run, config, task, encoder, member, Calibration.from_json(run.decision))
