"""Encoded rows into answers: one way for dev, evaluation, prediction and serving.

Rows are sorted by length, packed under a token budget, run without gradients, decided on while whole documents are at
hand, and put back in order. Decisions are kept, logits are not. A thousand rows or a stream of them are sorted in the
same portions, so the same rows give the same batches, and the same bits, wherever they are answered. Where memory runs
out a pass is divided, and all later ones too: the same numbers but for rounding.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from labeltune.data.batches import pack, sorted_batches
from labeltune.data.readers.rows import PART
from labeltune.data.store import Store
from labeltune.errors import ModelError, RunError
from labeltune.labels import LabelSet
from labeltune.metrics import Figures
from labeltune.model.member import LabelModel
from labeltune.schema import Encoded, Example, Prediction
from labeltune.shortage import fits
from labeltune.switches import SWITCHES, TRUNCATE_GOLD
from labeltune.tasks import Calibration, Loss, Task
from labeltune.wording import counted

logger = logging.getLogger(__name__)

CHUNK = 8192
"""Rows that are sorted by length together; what a stream of answers holds in memory."""

Progress = Callable[[int], None]
"""Called with the number of rows just answered."""
Hear = Callable[[list[int], np.ndarray, np.ndarray], None]
"""Called with the row numbers, logits (S, L) and target_document (S) of a forward pass."""


Pass = tuple[np.ndarray, np.ndarray]
"""Logits (S, L) and target_document (S) of a forward pass."""
Passes = Callable[[Callable[[list[int]], Pass], Sequence[list[int]]], Iterable[Pass]]
"""Runs a function over batches of row numbers, results in their order: `map`, or processes that share them out."""


class NotFinite(ModelError):
    """Logits that are no numbers."""


def no_progress(rows: int) -> None:
    """The progress that nobody watches."""


def nobody(numbers: list[int], logits_SL: np.ndarray, documents_S: np.ndarray) -> None:
    """Nobody hears of the passes."""


@dataclass
class Limit:
    """Most tokens of one forward pass, as far as memory has shown it; a labeller and its variants share it."""

    tokens: float = math.inf


@dataclass(frozen=True)
class Labeller:
    """A member that answers: slice 0 of `model`, its task and labels, and what was fitted on dev.

    budget: most tokens of one forward pass; a longer row is alone in its own.
    switches: the settings of published protocols that are on, by name (see SWITCHES); every report carries them.
    parts: the model was trained on a table of files; reports have the figures of each.
    each: who makes the passes; this process in turn, or several that share them out.
    divides: a pass may become several where memory runs out; not where other processes wait for each pass of this one.
    """

    model: LabelModel
    task: Task
    labels: LabelSet
    calibration: Calibration
    budget: int
    switches: tuple[str, ...] = ()
    parts: bool = False
    each: Passes = map
    divides: bool = True
    limit: Limit = field(default_factory=Limit, compare=False, repr=False)

    def predict(
        self,
        examples: Sequence[Example],
        rows: Sequence[Encoded] | Store,
        *,
        progress: Progress = no_progress,
        hear: Hear = nobody,
    ) -> list[Prediction]:
        """One prediction with every score per example, in order; `rows` are the examples, encoded. hear: each pass."""
        answers: list[Prediction | None] = [None] * len(examples)
        head = self.model.members[0].head
        for numbers, logits_SL, documents_S in self._passes(rows):
            hear(numbers, logits_SL, documents_S)
            decisions = self.task.decide(logits_SL, documents_S, self.labels, self.calibration, head)
            chosen = self.task.predictions(
                [examples[number] for number in numbers],
                [rows[number].target_span for number in numbers],
                decisions,
                self.labels,
            )
            for number, prediction in zip(numbers, chosen, strict=True):
                answers[number] = prediction
            progress(len(numbers))
        return [answer for answer in answers if answer is not None]

    def score(self, examples: Sequence[Example], rows: Sequence[Encoded] | Store, loss: Loss) -> Figures:
        """The task's metrics, on the full gold unless `eval.truncate_gold`, and `loss`, the mean of the training's."""
        sums = np.zeros(2)  # of losses, of weights
        device = self.model.backbone.device

        def hear(numbers: list[int], logits_SL: np.ndarray, documents_S: np.ndarray) -> None:
            labels = np.concatenate([rows[number].labels for number in numbers])
            arrays = (torch.from_numpy(array).to(device) for array in (logits_SL, labels, documents_S))
            with torch.no_grad():
                sums[:] += [float(part) for part in loss(*arrays)]

        predictions = self.predict(examples, rows, hear=hear)
        figures = self.task.score(self.gold(examples, rows), predictions, self.labels)
        return figures | {"loss": float(sums[0] / sums[1]) if sums[1] else math.nan}

    def report(
        self,
        examples: Sequence[Example],
        rows: Sequence[Encoded] | Store,
        predictions: Sequence[Prediction],
    ) -> dict[str, Any]:
        """The metrics of answers with every score, and what their reader must know (see `caveats`)."""
        gold = self.gold(examples, rows)
        stamps: dict[str, Any] = {
            "lost": lost(self.task, examples, rows),
            "unseen_labels": list(self.task.unseen(gold, self.labels)),
            "switches": list(self.switches),
            "parts": self._by_part(gold, predictions),
        }
        figures: dict[str, Any] = dict(self.task.score(gold, predictions, self.labels))
        return figures | {name: stamp for name, stamp in stamps.items() if stamp}

    def _by_part(self, gold: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Figures]:
        """The metrics of each file of a table of files (several languages, say); empty where rows have no part."""
        places: dict[str, list[int]] = {}
        for place, example in enumerate(gold):
            places.setdefault(str(example.fields.get(PART, "")), []).append(place)
        if not self.parts or "" in places:
            return {}
        return {
            part: self.task.score([gold[p] for p in chosen], [predictions[p] for p in chosen], self.labels)
            for part, chosen in sorted(places.items())
        }

    def gold(self, examples: Sequence[Example], rows: Sequence[Encoded] | Store) -> Sequence[Example]:
        """What the answers are held against."""
        if TRUNCATE_GOLD not in self.switches:
            return examples
        pairs = zip(examples, rows, strict=True)
        return [self.task.read_part(e, row.target_span) if _is_cut(row) else e for e, row in pairs]

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
        lengths = rows.lengths if isinstance(rows, Store) else np.array([len(row.tokens) for row in rows], np.int64)
        for first in range(0, len(lengths), CHUNK):
            places = sorted_batches(lengths[first : first + CHUNK], self.budget)
            batches = [[first + place for place in batch] for batch in places]
            passes = self.each(lambda numbers: self._answered([(n, rows[n]) for n in numbers]), batches)
            for numbers, (logits_SL, documents_S) in zip(batches, passes, strict=True):
                if not np.isfinite(logits_SL).all():
                    hint = 'train again with a lower train.lr; where model.dtype is "fp16", with "bf16"'
                    raise NotFinite("the model's answers are no finite numbers", hint=hint)
                yield numbers, logits_SL, documents_S

    def _answered(self, rows: Sequence[tuple[int, Encoded]]) -> Pass:
        """One pass, or several where memory runs out; rows: the longest first.

        Raises:
            RunError: there is too little memory for a single row.
        """
        if not self.divides:
            return self._pass(rows)
        lengths = np.array([len(row.tokens) for _, row in rows], np.int64)
        parts = sorted_batches(lengths, int(min(self.budget, self.limit.tokens)))
        if len(parts) > 1:
            return _joined([self._answered([rows[place] for place in part]) for part in parts], list(map(len, parts)))
        found: list[Pass] = []
        if fits(lambda: found.append(self._pass(rows))):
            return found[0]
        self._lower(lengths)
        return self._answered(rows)

    def _lower(self, lengths: np.ndarray) -> None:
        """Half as many tokens in a pass from now on as there were in the one that failed."""
        if len(lengths) == 1:
            hint = 'lower it, set data.long = "truncate", or choose a smaller backbone'
            message = f"a row of {lengths[0]:,} tokens needs more memory than there is"
            raise RunError(message, at="data.max_tokens", hint=hint)
        self.limit.tokens = int(lengths.sum()) // 2
        told = "memory ran out: from now on %s tokens are answered at once (eval.batch_tokens)"
        logger.warning(told, self.limit.tokens)

    def _pass(self, rows: Sequence[tuple[int, Encoded]]) -> Pass:
        batch = pack([rows], self.model.backbone.device)
        with torch.no_grad():
            (logits_SL,) = self.model(batch)
        return logits_SL.float().cpu().numpy(), batch.target_document.cpu().numpy()


def _joined(passes: Sequence[Pass], sizes: Sequence[int]) -> Pass:
    """Passes over neighbouring rows as one; sizes: rows of each."""
    logits, documents = zip(*passes, strict=True)
    firsts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate(logits), np.concatenate([d + first for d, first in zip(documents, firsts, strict=True)])


# What was not read


def lost(task: Task, examples: Iterable[Example], rows: Sequence[Encoded] | Store) -> dict[str, int]:
    """What was cut off: `rows` that are affected, `words` (of a tagger), `entities`, `characters`; empty if nothing.

    examples: those of `rows`; read only where something was cut.
    """
    if isinstance(rows, Store) and not rows.cut.any():
        return {}
    counts: Counter[str] = Counter()
    for example, row in zip(examples, rows, strict=True):
        if _is_cut(row):
            entities = len(example.spans or ()) - len(task.read_part(example, row.target_span).spans or ())
            counts.update(rows=1, words=row.dropped_units, entities=entities, characters=row.dropped_characters)
    return {name: count for name, count in counts.items() if count}


def _is_cut(row: Encoded) -> bool:
    return row.dropped_units > 0 or row.dropped_characters > 0


def caveats(metrics: Mapping[str, Any]) -> list[str]:
    """The stamps of a report as sentences."""
    said = []
    if cut := metrics.get("lost"):
        what = ", ".join(f"{count:,} {name}" for name, count in cut.items() if name != "rows")
        said.append(f"{counted(cut['rows'], 'row is', 'rows are')} longer than the model reads: {what} are cut off")
    if unseen := metrics.get("unseen_labels"):
        names = ", ".join(map(repr, unseen))
        said.append(f"labels that the training rows do not have count as errors: {names}")
    if bad := metrics.get("bad_rows"):
        said.append(counted(bad, "row could not be used: it is", "rows could not be used: they are") + " in no figure")
    return said + [f"{SWITCHES[name]} ({name})" for name in metrics.get("switches", ())]
