"""A loaded run that answers: texts, rows or files in, predictions out, in bounded memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, tee
from pathlib import Path
from typing import Any

import torch

from labeltune.assembly import Assembly, assemble
from labeltune.config import Config, switches, with_settings
from labeltune.data.datasets import open_dataset
from labeltune.data.store import Store
from labeltune.data.templates import parse
from labeltune.errors import DataError, SettingsError, nearest
from labeltune.inference import CHUNK, Labeller
from labeltune.model.checkpoints import load_tokenizer
from labeltune.model.member import LabelModel, merge
from labeltune.run import BACKBONE, TOKENIZER, Run, finite, open_run, plain_metrics
from labeltune.schema import Example, Prediction
from labeltune.settings import known_names
from labeltune.storage import refuse_file, to_json, write_atomic
from labeltune.tasks import Calibration
from labeltune.training.trainer import MICRO_TOKENS


@dataclass(frozen=True)
class Predictor:
    """A run on its backbone, checked for Company and Sight, ready to answer."""

    run: Run
    assembly: Assembly
    labeller: Labeller

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it knows, in the order of its logits."""
        return self.run.labels.names

    def predict(
        self, texts: str | Sequence[object], *, min_score: float | None = None, scores: bool = False
    ) -> list[Prediction]:
        """Label texts, or rows as dictionaries with the columns of the training data; a row without a text is an error.

        A text alone stands in the only field of the run's template; where the template has several, give dictionaries.
        min_score: below it the model abstains (`label` is None). scores: give every label's probability.
        """
        items: list[object] = [texts] if isinstance(texts, str) else list(texts)
        if not items:
            return []
        config = self.run.config.data.model_copy(update={"on_bad_row": "error"})  # an answer for each, or none
        fields = set(parse(config.template).fields) if config.template else set()
        column = fields.pop() if len(fields) == 1 else "text"
        rows = [{column: item} if isinstance(item, str) else item for item in items]
        if column == "text" and all(isinstance(item, str) for item in items):
            given = {"text": "text"} if config.text or not config.template else {}
            config = config.model_copy(update={"tokens": None, **given})
        dataset = open_dataset(rows, config, self.run.config.task, labelled=False, name="texts")
        return list(self.stream(dataset, min_score=min_score, scores=scores))

    def stream(
        self, examples: Iterable[Example], *, min_score: float | None = None, scores: bool = False
    ) -> Iterator[Prediction]:
        """One prediction per example, in order; at most `CHUNK` rows are held in memory."""
        kept, read = tee(examples)
        encoded = self.assembly.encoder.encode_many(read)  # one stream, for neighbours may be context
        while chunk := list(islice(zip(kept, encoded, strict=True), CHUNK)):
            rows = [row for _, row in chunk]
            yield from self.labeller.predict([e for e, _ in chunk], rows, min_score=min_score, all_scores=scores)


def load(path: str | Path, *, settings: Mapping[str, Any] | None = None) -> Predictor:
    """Open a run folder and load what answers.

    settings: dotted names that may differ from the training's (`train.device`, `eval.batch_tokens`, `model.dtype`).
    Raises RunError where the folder is incomplete or changed, ModelError where the backbone is not the one it was.
    """
    return _load(open_run(path), settings or {})


def answering(run: Run, settings: Mapping[str, Any]) -> Config:
    """The settings that a run answers with: its own, but for those that may differ.

    Raises:
        SettingsError: one that may not.
    """
    config = with_settings(run.config, {"train.device": "auto", **_allowed(settings)})
    if (run.folder / BACKBONE).exists():  # full fine-tuning: the run is its own backbone, and `format` holds its hash
        own = {"name": str(run.folder / BACKBONE), "revision": None, "weights_sha256": None}
        config = config.model_copy(update={"model": config.model.model_copy(update=own)})
    return config


def _load(run: Run, settings: Mapping[str, Any]) -> Predictor:
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
)
"""Settings of a run that may differ when it answers, beside those of the data."""


def _allowed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in settings:
        if name not in known_names(Config):
            raise SettingsError("unknown setting", at=name, hint=nearest(name, known_names(Config)))
        if name not in FREE and not name.startswith("data."):
            raise SettingsError("this cannot differ from the training", at=name, hint="free are " + ", ".join(FREE))
    return settings


def _of_new_rows(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The settings of rows that are new to a run: what training passed over, an answer must not without being told."""
    return {"data.on_bad_row": "error", **_allowed(settings or {})}


@dataclass(frozen=True)
class Report:
    """What `evaluate` found."""

    metrics: dict[str, Any]
    rows: int
    wrong: int


def evaluate(
    run: str | Path, data: object, *, settings: Mapping[str, Any] | None = None, errors: str | Path | None = None
) -> Report:
    """Score a run on labelled rows, on the full gold (unless `eval.truncate_gold`).

    errors: a JSONL file for the rows that came out wrong (of numbers, the furthest first); it must not be there yet.
    """
    if errors is not None:
        refuse_file(Path(errors))
    opened = open_run(run)
    config = with_settings(opened.config, _of_new_rows(settings))
    dataset = open_dataset(data, config.data, config.task, labelled=True, name=_name(data))
    predictor = _load(opened, settings or {})
    examples, labeller = list(dataset), predictor.labeller
    rows = Store.build(examples, predictor.assembly.encoder.encode_many)
    predictions = labeller.predict(examples, rows, all_scores=True)
    metrics = plain_metrics(labeller.report(examples, rows, predictions))
    metrics |= {"bad_rows": dataset.bad_rows} if dataset.bad_rows else {}
    pairs = zip(labeller.gold(examples, rows), predictions, strict=True)
    judged = [(labeller.task.error(*pair), pair) for pair in pairs]
    wrong = [pair for error, pair in sorted(judged, key=lambda one: -one[0]) if error]
    if errors is not None:
        write_atomic(Path(errors), "".join(to_json(_wrong(*pair)) + "\n" for pair in wrong))
    return Report(metrics, len(examples), len(wrong))


def _wrong(example: Example, prediction: Prediction) -> dict[str, Any]:
    gold: Any = example.label if example.spans is None else [asdict(span) for span in example.spans]
    return {"id": example.id, "text": example.text, "gold": gold, **answer_fields(prediction)}


def answer_fields(prediction: Prediction) -> dict[str, Any]:
    """The answer as JSON fields: `label`, `score`, `labels`, `scores`, `value`, `spans`; those that the task gives.

    `label` is given as null where the model abstains.
    """
    fields = {
        "score": prediction.score,
        "labels": None if prediction.labels is None else list(prediction.labels),
        "scores": None if prediction.scores is None else dict(prediction.scores),
        "value": prediction.value,
        "spans": None if prediction.spans is None else [asdict(span) for span in prediction.spans],
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {"label": prediction.label, **given} if "score" in given else given


def in_column(example: Example, prediction: Prediction) -> Prediction:
    """Spans found in a templated text, counted from the start of the column that the gold spans sit on.

    What was found in the template's other fields has no place in that column and is left out.
    """
    if prediction.spans is None or example.body is None:
        return prediction
    start, end = example.body
    inside = (span for span in prediction.spans if start <= span.start and span.end <= end)
    return replace(prediction, spans=tuple(replace(s, start=s.start - start, end=s.end - start) for s in inside))


def with_input(example: Example, prediction: Prediction) -> dict[str, Any]:
    """The input's fields plus the answer; an input column of the same name is kept as `input_<name>`."""
    answer = answer_fields(in_column(example, prediction))
    fields = {f"input_{name}" if name in answer else name: _sayable(cell) for name, cell in example.fields.items()}
    if prediction.spans is not None and example.text not in example.fields.values():
        fields.setdefault("text", example.text)  # offsets refer to it
    return {**fields, **answer}


def _sayable(cell: object) -> object:
    """A cell as JSON can say it: NaN and infinity become null."""
    if isinstance(cell, float):
        return finite(cell)
    if isinstance(cell, list):
        return [_sayable(part) for part in cell]
    return {name: _sayable(part) for name, part in cell.items()} if isinstance(cell, Mapping) else cell


def predict_files(
    run: str | Path,
    files: Sequence[str | Path],
    *,
    min_score: float | None = None,
    scores: bool = False,
    settings: Mapping[str, Any] | None = None,
    said: Callable[[str], None] = lambda sentence: None,
) -> Iterator[dict[str, Any]]:
    """The rows of all files in order, each with its answer. `-` is standard input: a JSON object or a text a line.

    said: told of rows that could not be used and have no answer (`data.on_bad_row`).
    """
    opened = open_run(run)
    config = with_settings(opened.config, _of_new_rows(settings))
    sources = [(_standard_input(), "stdin") if str(file) == "-" else (str(file), _name(file)) for file in files]
    datasets = [open_dataset(source, config.data, config.task, labelled=False, name=name) for source, name in sources]
    predictor = _load(opened, settings or {})
    for dataset in datasets:
        if dataset.bad_rows:
            said(f"{dataset.source}: {dataset.bad_rows:,} rows could not be used and have no answer")
        kept, read = tee(dataset)
        yield from map(with_input, kept, predictor.stream(read, min_score=min_score, scores=scores))


def _standard_input() -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(sys.stdin.buffer, 1):
        at = f"stdin:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if text.strip():
                rows.append(json.loads(text) if text.lstrip().startswith("{") else {"text": text})
        except UnicodeDecodeError as error:
            raise DataError(f"byte {error.start + 1} is no UTF-8", at=at, hint="convert it to UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"this is no JSON ({error})", at=at, hint="a line is a JSON object or a text") from None
    return rows


def _name(data: object) -> str:
    return Path(data).name if isinstance(data, str | Path) else "data"
