"""What the model will see of the data, and what is suspicious in it: `labeltune inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from labeltune.assembly import make_encoder, task_of
from labeltune.config import Config, gather, with_settings
from labeltune.data.cutting import TooLong
from labeltune.data.datasets import Dataset, Loaded, load
from labeltune.data.encoding import Encoder, Shown
from labeltune.data.lint import Finding, lint
from labeltune.data.specials import unknown_token
from labeltune.errors import SettingsError
from labeltune.fitting import named_and_given
from labeltune.labels import LabelSet, align
from labeltune.model.checkpoints import load_tokenizer, read_context
from labeltune.schema import Encoded
from labeltune.tasks import Task

SHOWN_ROWS = 3
SHOWN_FIRST, SHOWN_LAST = 150, 50
MANY_WINDOWS = 10**9
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Tokens:
    """The token lengths of one split, special tokens included, and what the limit does to them.

    windows: rows that need more than one window. cut_…: what `data.long = "truncate"` would lose.
    refused: rows that need more than `data.max_windows`, which is an error. uncut: rows that `truncate` would refuse,
    since what may be shortened is too short. unknown: rows with text that the tokenizer
    has no token for, so that the model cannot read it. torn: gold spans that begin or end inside a unit, which no
    model can find.
    """

    rows: int
    total: int
    shortest: int
    quantiles: Mapping[str, int]
    longest: int
    limit: int
    windows: int
    refused: int
    uncut: int
    unknown: int
    cut_rows: int
    cut_units: int
    cut_characters: int
    cut_spans: int
    torn: int

    @property
    def mean(self) -> float:
        """Tokens of a row."""
        return self.total / max(self.rows, 1)


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` found. `seen` holds the first rows as (id, tokens with their roles)."""

    task: str
    said: tuple[str, ...]
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...]
    tokens: Mapping[str, Tokens]
    seen: tuple[tuple[str, tuple[Shown, ...]], ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        facts = asdict(self)
        facts["seen"] = [{"id": id_, "tokens": [shown._asdict() for shown in row]} for id_, row in self.seen]
        return facts


def inspect(
    data: object = None,
    *,
    model: str | None = None,
    dev: object = None,
    test: object = None,
    task: str | None = None,
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Inspection:
    """Read and check the data as a training would; with a model also count its tokens. Arguments as in `train`."""
    named, given = named_and_given(data, dev, test)
    asked = gather(config, {**named, "model.name": model, "task": task}, settings or {})
    loaded = load(
        asked.data, asked.task, base=Path.cwd(), data=given[0], dev=given[1], test=given[2], seed=asked.train.seed
    )
    asked = with_settings(asked.model_copy(update={"data": loaded.config}), {"task": loaded.task})
    row = task_of(asked)
    labels = row.label_set(loaded.train, asked.data)
    splits = _splits(loaded)
    tokens: dict[str, Tokens] = {}
    seen: tuple[tuple[str, tuple[Shown, ...]], ...] = ()
    if asked.model.name is not None:
        asked = _settled(asked, row)
        encoder = make_encoder(asked, row, labels, load_tokenizer(asked.model))
        tokens = {name: count_tokens(split, encoder, asked, row, labels) for name, split in splits.items()}
        seen = _seen(loaded.train, _windowed(asked, encoder, row, labels) if asked.data.long == "window" else encoder)
    return Inspection(
        loaded.task,
        loaded.said,
        {name: len(split) for name, split in splits.items()},
        {name: _counts(split, row) for name, split in splits.items()},
        tuple(lint(loaded)),
        tokens,
        seen,
    )


def _splits(loaded: Loaded) -> dict[str, Dataset]:
    splits = {"train": loaded.train, "dev": loaded.dev, "test": loaded.test}
    return {name: split for name, split in splits.items() if split is not None}


def _counts(split: Dataset, task: Task) -> dict[str, int]:
    """How often each label occurs, sorted by name."""
    counts = Counter(name for example in split for name in task.gold(example))
    return dict(sorted(counts.items()))


def _settled(config: Config, task: Task) -> Config:
    """The settings that decide the encoding, as a training would settle them."""
    context = read_context(config.model)
    longest = config.data.max_tokens or min(context or 512, 512)
    if context is not None and longest > context:
        hint = f"set it to at most {context}"
        raise SettingsError(
            f"{longest} is more than the backbone's context of {context}", at="data.max_tokens", hint=hint
        )
    return with_settings(config, {"data.max_tokens": longest, "model.pooling": config.model.pooling or task.pooling})


def count_tokens(split: Dataset, encoder: Encoder, config: Config, task: Task, labels: LabelSet) -> Tokens:
    """Encode a split as it would be read, and cut at the limit to see what that would lose.

    Raises:
        TooLong: a row that cannot be cut, where `data.long` asks for it.
    """
    cutting = _encoder(config, encoder, task, labels, {"long": "truncate", "pad_as_text": None})
    whole = _windowed(config, encoder, task, labels)
    lengths, windows, refused, uncut, unknown, torn, lost_spans = [], 0, 0, 0, 0, 0, 0
    nothing = unknown_token(encoder.tokenizer)
    lost: Counter[str] = Counter()
    for example, full in zip(split, whole.encode_many(split), strict=True):
        lengths.append(len(full.tokens))
        windows += len(full.window_lengths) > 1
        refused += len(full.window_lengths) > config.data.max_windows
        unknown += nothing is not None and nothing in full.tokens
        in_full = len(align(example.spans, units_of(full)).lost) if example.spans else 0
        torn += in_full
        if len(full.window_lengths) == 1 and not full.dropped_characters:
            continue
        try:
            short = cutting.encode(example)
        except TooLong:
            if config.data.long == "truncate":
                raise
            uncut += 1
            continue
        lost.update(rows=short.dropped_characters > 0, units=short.dropped_units, characters=short.dropped_characters)
        if example.spans:
            lost_spans += len(align(example.spans, units_of(short)).lost) - in_full
    sizes = np.array(lengths or [0])
    return Tokens(
        rows=len(lengths),
        total=int(sizes.sum()),
        shortest=int(sizes.min()),
        quantiles={f"{share:.0%}": int(np.quantile(sizes, share, method="higher")) for share in SHARES},
        longest=int(sizes.max()),
        limit=encoder.max_tokens,
        windows=windows,
        refused=refused,
        uncut=uncut,
        unknown=unknown,
        cut_rows=lost["rows"],
        cut_units=lost["units"],
        cut_characters=lost["characters"],
        cut_spans=lost_spans,
        torn=torn,
    )


def _windowed(config: Config, encoder: Encoder, task: Task, labels: LabelSet) -> Encoder:
    """The encoder that loses nothing, whatever `data.long` and `data.max_windows` say: lengths must come out."""
    whole = {"long": "window", "max_windows": MANY_WINDOWS, "pad_as_text": None}
    return _encoder(config, encoder, task, labels, whole)


def _encoder(config: Config, encoder: Encoder, task: Task, labels: LabelSet, data: Mapping[str, object]) -> Encoder:
    """Another encoder of the same tokens."""
    other = config.model_copy(update={"data": config.data.model_copy(update=data)})
    return make_encoder(other, task, labels, encoder.tokenizer)


def units_of(row: Encoded) -> list[tuple[int, int]]:
    """The characters of a row's targets."""
    return [(int(start), int(end)) for start, end in row.target_span]


def _seen(split: Dataset, encoder: Encoder) -> tuple[tuple[str, tuple[Shown, ...]], ...]:
    rows = []
    for number, example in enumerate(split):
        if number == SHOWN_ROWS:
            break
        rows.append((example.id, tuple(encoder.show(example))))
    return tuple(rows)


ROLES = {"read": "bold black on bright_green", "owned": "", "context": "dim", "special": "italic cyan"}


def show(found: Inspection, console: Console) -> None:
    """Print an inspection for people."""
    for sentence in found.said:
        console.print(Text(sentence))
    console.print(_label_table(found))
    if found.tokens:
        console.print(_token_table(found.tokens))
    for id_, tokens in found.seen:
        line = Text(f"{id_}  ", style="dim")
        for token in tokens[:SHOWN_FIRST]:
            line.append(token.text, ROLES[token.role]).append(" ")
        if (rest := len(tokens) - SHOWN_FIRST - SHOWN_LAST) > 0:
            line.append(f"… {rest:,} more tokens … ", "dim")
        for token in tokens[max(SHOWN_FIRST, len(tokens) - SHOWN_LAST) :]:
            line.append(token.text, ROLES[token.role]).append(" ")
        console.print(line)
    if found.seen:
        console.print(Text.assemble(*((f" {role} ", style) for role, style in ROLES.items())))
    for finding in found.findings:
        mark = ("warning", "bold yellow") if finding.level == "warning" else ("note", "dim")
        console.print(Text.assemble(mark, f" {finding}"))
    if not found.findings:
        console.print("nothing suspicious was found")


def _label_table(found: Inspection) -> Table:
    table = Table(title=f"{found.task}: labels", box=None, title_justify="left", header_style="bold")
    table.add_column("label")
    for split in found.rows:
        table.add_column(split, justify="right")
    for name in sorted({name for counts in found.labels.values() for name in counts}):
        table.add_row(Text(name), *(f"{counts.get(name, 0):,}" for counts in found.labels.values()))
    table.add_row("rows", *(f"{rows:,}" for rows in found.rows.values()), style="bold")
    return table


def _token_table(tokens: Mapping[str, Tokens]) -> Table:
    table = Table(title="tokens", box=None, title_justify="left", header_style="bold")
    table.add_column("")
    for split in tokens:
        table.add_column(split, justify="right")
    columns = tokens.values()
    limit = next(iter(columns)).limit
    rows = {
        "a row: shortest": [t.shortest for t in columns],
        **{f"a row: {share} at most": [t.quantiles[share] for t in columns] for share in next(iter(columns)).quantiles},
        "a row: longest": [t.longest for t in columns],
        "together": [t.total for t in columns],
        f"rows that need windows of {limit:,}": [t.windows for t in columns],
        "rows beyond data.max_windows (an error)": [t.refused for t in columns],
        "rows with text that has no token": [t.unknown for t in columns],
        "words that truncation would cut": [t.cut_units for t in columns],
        "rows that truncation would refuse": [t.uncut for t in columns],
        "characters that truncation would cut": [t.cut_characters for t in columns],
        "spans that truncation would lose": [t.cut_spans for t in columns],
        "spans that end inside a word": [t.torn for t in columns],
    }
    for name, numbers in rows.items():
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table
