"""The `data` section: where the rows are, which columns carry what, and what becomes of long text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from labeltune.settings import Settings, one_of

LONG = ("window", "truncate", "error")
UNITS = ("auto", "word", "character")
ON_BAD_ROW = ("error", "skip", "quarantine")
NORMAL_FORMS = ("none", "NFC", "NFKC")


class DataConfig(Settings):
    """What to read and how to turn it into text and targets."""

    train: str | dict[str, str] | None = None
    """File, folder or `hf:owner/name[:config]` of the training rows; a table name -> file joins several."""
    dev: str | dict[str, str] | Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Dev rows: a file, a hub split, or the fraction of the training rows to hold out (stratified, seeded)."""
    test: str | dict[str, str] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Test rows: a file, a hub split, or a fraction held out like dev; read for faults first, scored at the end."""
    fold: Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*$")] | None = None
    """`2/5`: dev is the second of five parts of the training rows (stratified, seeded), in place of `data.dev`."""
    split_seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of what is held out [= train.seed]."""
    train_rows: Annotated[int, Field(ge=1)] | None = None
    """Train on so many rows, stratified, drawn by train.seed after dev and test; fewer are part of more [all]."""
    columns: tuple[str, ...] | None = None
    """Column names of a file without header (CSV, TSV, CoNLL columns)."""
    group: str | None = None
    """Column whose equal values are never split between train, dev and test."""
    text: str | None = None
    """Column with the text (guessed where unambiguous)."""
    label: str | None = None
    """Column with the label (guessed where unambiguous)."""
    tokens: str | None = None
    """Column with the given tokens of a tagging row."""
    tags: str | None = None
    """Column with one tag per token (IOB1, IOB2 or BIOES, recognised)."""
    spans: str | None = None
    """Column with character spans: a list of {start, end, label}."""
    label_names: tuple[str, ...] | dict[str, str] | None = None
    """Names for label ids: a list (id 0, 1, …) or a table id -> name."""
    label_order: tuple[str, ...] | None = None
    """The labels from lowest to highest; required for ordinal."""
    template: str | None = None
    """Fields into a text, as in `{title}\\n{body}`; spans of the text column shift along."""
    normal_form: Annotated[str, one_of(NORMAL_FORMS)] = "none"
    """Unicode normalisation of texts and tokens; `NFKC` makes full-width letters and half-width kana ordinary ones."""
    bos: bool | Literal["auto"] = "auto"
    """Begin-of-sequence token before each window: true, false, or `auto` (what the tokenizer adds)."""
    eos: bool | Literal["auto"] = "auto"
    """End-of-sequence token after each window: true, false, or `auto` (what the tokenizer adds)."""
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    """Longest window in tokens, special tokens included [min(context, 512)]."""
    long: Annotated[str, one_of(LONG)] = "window"
    """What becomes of text that does not fit: windows, a counted cut, or an error."""
    overlap: Annotated[int, Field(ge=0)] = 64
    """Tokens that neighbouring windows share."""
    long_field: str | None = None
    """The template field that `truncate` shortens [the longest]; prefix and suffix stay."""
    max_windows: Annotated[int, Field(ge=1)] = 64
    """A text that needs more windows than this is an error."""
    unit: Annotated[str, one_of(UNITS)] = "auto"
    """What a tag sits on when no tokens are given: Unicode words, or characters where a script has no spaces."""
    context: Annotated[int, Field(ge=0)] = 0
    """Neighbouring rows put around each row as unlabelled context (tagging)."""
    repeat: Annotated[int, Field(ge=0)] = 0
    """How many more times the text is written; its last copy is read (arXiv 2601.17585)."""
    tag_starts_only: bool = False
    """An entity is its first unit, in training and in the gold; for published protocols, every report is stamped."""
    pad_as_text: Annotated[str, Field(pattern=r"^block:[1-9]\d*$")] | None = None
    """`block:1000` makes rows as long as the longest of their block, with pad tokens that count as text; stamped."""
    on_bad_row: Annotated[str, one_of(ON_BAD_ROW)] = "error"
    """A row that cannot be used: stop, skip and count, or skip and write it to quarantine.jsonl."""
