"""A loaded run that answers: texts, rows or files in, predictions out, in bounded memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import torch

from labeltune.answers import Wish, answer_fields, refuse_score
from labeltune.assembly import Assembly, assemble
from labeltune.config import Config, switches, with_settings
from labeltune.data.batches import MICRO_TOKENS
from labeltune.data.columns import refuse_another_text
from labeltune.data.datasets import SAMPLE, Dataset, open_dataset
from labeltune.data.encoding import Encoder
from labeltune.data.items import TEXT, Items
from labeltune.data.readers.memory import items_of
from labeltune.data.store import Store
from labeltune.data.streams import open_stream, passing, rows_of
from labeltune.errors import SettingsError, nearest
from labeltune.inference import CHUNK, Labeller, Progress, no_progress
from labeltune.ledger import Ledger
from labeltune.metrics import Confused, Figures, LabelFigures
from labeltune.model.checkpoints import load_tokenizer
from labeltune.model.member import LabelModel, merge
from labeltune.portions import Portion, answer, portions
from labeltune.recorded import dev_rows
from labeltune.run import BACKBONE, SPLITS, TOKENIZER, Run, open_run, plain_metrics
from labeltune.schema import Encoded, Example, Prediction, in_column
from labeltune.settings import known_names
from labeltune.storage import read_json, refuse_file, to_json, write_atomic
from labeltune.tasks import Calibration


@dataclass(frozen=True)
class Predictor:
    """A run on its backbone, checked for Company and Sight, ready to answer."""

    run: Run
    assembly: Assembly
    labeller: Labeller
    turn: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it knows, in the order of its logits."""
        return self.run.labels.names

    def predict(
        self, texts: str | Iterable[object], *, min_score: float | None = None, scores: bool = False
    ) -> list[Prediction]:
        """Label texts, or rows as dictionaries with the columns of the training data; a row without a text is an error.

        One text, or one dictionary, is a list of one; a DataFrame stands for its rows.

        A text alone stands in the only field of the run's template; where the template has several, give dictionaries.
        min_score: below it the model abstains (`label` is None). scores: give every label's probability.
        Threads may call it at once: they take turns.
        """
        return list(self.stream(texts, min_score=min_score, scores=scores))

    async def apredict(
        self, texts: str | Iterable[object], *, min_score: float | None = None, scores: bool = False
    ) -> list[Prediction]:
        """`predict` in a thread of its own, for programs that must not wait: the event loop goes on meanwhile."""
        return await asyncio.to_thread(self.predict, texts, min_score=min_score, scores=scores)

    def stream(
        self, items: str | Iterable[object], *, min_score: float | None = None, scores: bool = False
    ) -> Iterator[Prediction]:
        """One prediction per item, in order, while the items come; at most `CHUNK` of them are held in memory.

        Items are what `predict` takes, or examples. What the first hundred are settles the columns. Spans count
        characters of the column that they are in, whatever the run's template puts around it.
        """
        wish = Wish(min_score, scores)
        for portion in portions(self.examples(items_of(items)), self.encoder.config, CHUNK):
            yield from map(in_column, portion.rows, self.answer(portion, wish))

    def answer(self, portion: Portion, wish: Wish, progress: Progress = no_progress) -> list[Prediction]:
        """One prediction for each row of a portion. progress: told how many distinct rows a pass has answered."""

        def decide(examples: Sequence[Example], rows: Sequence[Encoded]) -> list[Prediction]:
            with self.turn:
                return [wish.of(said) for said in self.labeller.predict(examples, rows, progress=progress)]

        return answer(portion, self.encoder, decide)

    @property
    def encoder(self) -> Encoder:
        """What turns examples into tokens."""
        return self.assembly.encoder

    def examples(self, items: Iterable[object]) -> Iterator[Example]:
        """Items as examples, addressed `texts[17]`; examples pass through."""
        left = iter(items)
        head = list(islice(left, SAMPLE))
        if not head:
            return iter(())
        both = chain(head, left)
        if isinstance(head[0], Example):
            return cast(Iterator[Example], both)
        reader = Items(self.run.config.data, self.labeller.task.name)
        config = reader.of_texts if all(isinstance(item, str) for item in head) else reader.of_rows
        column = reader.fields[0] if len(reader.fields) == 1 else TEXT
        rows = ({column: item} if isinstance(item, str) else item for item in both)
        stream = open_stream(passing(rows_of(rows, "texts"), "texts"), config, reader.task)
        refuse_another_text(stream.columns, config, "texts")
        return iter(stream)


def load(path: str | Path, *, settings: Mapping[str, Any] | None = None) -> Predictor:
    """Open a run folder and load what answers.

    settings: dotted names that may differ from the training's (`train.device`, `eval.batch_tokens`, `model.dtype`).
    Raises RunError where the folder is incomplete or changed, ModelError where the backbone is not the one it was.
    """
    return load_run(open_run(path), settings or {})


def answering(run: Run, settings: Mapping[str, Any]) -> Config:
    """The settings that a run answers with: its own, but for those that may differ.

    Raises:
        SettingsError: one that may not.
    """
    config = with_settings(run.config, {"train.device": "auto", "model.matmul": "auto", **_allowed(settings)})
    if (run.folder / BACKBONE).exists():  # full fine-tuning: the run is its own backbone, and `format` holds its hash
        own = {"name": str(run.folder / BACKBONE), "revision": None, "weights_sha256": None}
        config = config.model_copy(update={"model": config.model.model_copy(update=own)})
    return config


def load_run(run: Run, settings: Mapping[str, Any]) -> Predictor:
    """What answers, of a run that is opened already; see `load`."""
    config = answering(run, settings)
    if "train.threads" in settings and config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    assembly = assemble(config, run.labels, load_tokenizer(config.model, run.folder / TOKENIZER))
    assembly.member.load(run.folder)
    evaluation = assembly.config.eval
    if evaluation.merge:
        assembly = replace(assembly, member=merge(assembly.backbone, assembly.member))
    model = LabelModel(assembly.backbone, [assembly.member])
    labeller = Labeller(
        model,
        assembly.task,
        run.labels,
        Calibration.from_json(run.decision),
        evaluation.batch_tokens or MICRO_TOKENS,
        switches(assembly.config),
        isinstance(assembly.config.data.train, dict),
    )
    return Predictor(run, assembly, labeller)


FREE = (
    "train.device",
    "train.threads",
    "eval.batch_tokens",
    "eval.merge",
    "eval.truncate_gold",
    "model.dtype",
    "model.name",
    "model.quantization",
    "model.matmul",
)
"""Settings of a run that may differ when it answers, beside those of the data."""


def _allowed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in settings:
        if name not in known_names(Config):
            raise SettingsError("unknown setting", at=name, hint=nearest(name, known_names(Config)))
        if name not in FREE and not name.startswith("data."):
            hint = f"free are data.…, {', '.join(FREE)}"
            raise SettingsError("this cannot differ from the training", at=name, hint=hint)
    return settings


def of_new_rows(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The settings of rows that are new to a run: what training passed over, an answer must not without being told."""
    return {"data.on_bad_row": "error", **_allowed(settings or {})}


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    labels: the figures of each label, by name; confused: wrong labels for right ones, the most frequent first. Both are
    empty for numbers, the second for several labels and spans as well.
    """

    metrics: dict[str, Any]
    rows: int
    wrong: int
    labels: tuple[LabelFigures, ...] = ()
    confused: tuple[Confused, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The metrics, and `labels` and `confused` as tables where they are not empty."""
        tables: dict[str, Sequence[LabelFigures | Confused]] = {"labels": self.labels, "confused": self.confused}
        return self.metrics | {name: [line._asdict() for line in table] for name, table in tables.items() if table}


def evaluate(
    run: str | Path,
    data: object = None,
    *,
    settings: Mapping[str, Any] | None = None,
    errors: str | Path | None = None,
    min_scores: Sequence[float] = (),
) -> Report:
    """Score a run on labelled rows, on the full gold (unless `eval.truncate_gold`).

    data: a file or rows; None is the dev rows of the training, which chose the weights and what is fitted to them.
    errors: a JSONL file for the rows that came out wrong (of numbers, the furthest first); it must not be there yet.
    min_scores: the figures, too, where the model abstains below each of them, under `at_min_score`.
    """
    if errors is not None:
        refuse_file(Path(errors))
    opened = open_run(run)
    for least in min_scores:
        refuse_score(least, numbers=opened.config.task == "regression")
    examples, bad_rows = _labelled(opened, data, settings or {})
    predictor = load_run(opened, settings or {})
    labeller, task = predictor.labeller, predictor.labeller.task
    rows = Store.build(examples, predictor.assembly.encoder.encode_many)
    predictions = labeller.predict(examples, rows)
    metrics = plain_metrics(labeller.report(examples, rows, predictions))
    metrics |= {"bad_rows": bad_rows} if bad_rows else {}
    gold = labeller.gold(examples, rows)
    if min_scores:
        figures = {f"{least:g}": _abstaining(labeller, gold, predictions, least) for least in sorted(min_scores)}
        metrics["at_min_score"] = plain_metrics(figures)
    pairs = zip(gold, predictions, strict=True)
    judged = [(task.error(*pair), pair) for pair in pairs]
    wrong = [pair for error, pair in sorted(judged, key=lambda one: -one[0]) if error]
    if errors is not None:
        write_atomic(Path(errors), "".join(to_json(_wrong(*pair)) + "\n" for pair in wrong))
    labels, confused = task.hits(gold, predictions).per_label(), tuple(task.confused(gold, predictions))
    return Report(metrics, len(examples), len(wrong), labels, confused)


def _abstaining(
    labeller: Labeller, gold: Sequence[Example], predictions: Sequence[Prediction], least: float
) -> Figures:
    """The figures where answers below `least` are withheld; of single labels the accuracy of those given, too."""
    wish = Wish(least, scores=True)
    figures = labeller.task.score(gold, [wish.of(said) for said in predictions], labeller.labels)
    if coverage := figures.get("coverage"):
        figures["selective_accuracy"] = figures["accuracy"] / coverage
    return figures


def _labelled(run: Run, data: object, settings: Mapping[str, Any]) -> tuple[list[Example], int]:
    """The rows to score, and how many could not be used; rows of the test split are noted in the ledger."""
    config = with_settings(run.config, of_new_rows(settings))
    if data is None:
        if own := next((name for name in settings if name.startswith("data.")), None):
            raise SettingsError("the dev rows are read as in training", at=own, hint="leave it out, or name --data")
        return dev_rows(run)[0], 0
    name = Path(data).name if isinstance(data, str | Path) else "data"
    dataset = open_dataset(data, config.data, config.task, labelled=True, name=name)
    _note_test(run, dataset)
    return list(dataset), dataset.bad_rows


def _note_test(run: Run, dataset: Dataset) -> None:
    """A line in the ledger where the rows are the test split of the training."""
    path = run.folder / SPLITS
    splits: Any = read_json(path) if path.exists() else {}
    if "test" in splits and splits["test"]["content"] == dataset.content:
        Ledger(run.folder).note("evaluate", dataset.source, rows=len(dataset), sha256=dataset.sha256)


def _wrong(example: Example, prediction: Prediction) -> dict[str, Any]:
    gold: Any = example.label if example.spans is None else [asdict(span) for span in example.spans]
    return {"id": example.id, "text": example.text, "gold": gold, **answer_fields(prediction)}
