"""What is suspicious in the data, where, how often, and what it does to a score. It reports and changes nothing.

Fingerprints of the survey find what rows have in common; one pass over the examples finds the rest and the addresses.
"""

from __future__ import annotations

import heapq
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from labeltune.data import units
from labeltune.data.columns import LABEL, NUMBER, ORDERED
from labeltune.data.datasets import Dataset, Loaded, Notes
from labeltune.data.survey import fingerprint, label_set
from labeltune.data.templates import parse
from labeltune.labels import align, first_fault
from labeltune.schema import Example
from labeltune.wording import counted

SHOWN = 5
"""Addresses given with a finding."""
BUT_FOR = "case, white space or Unicode form"


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in one split.

    kind: its name. split: where. count: of rows, spans or labels, as `message` says. at: the first addresses.
    effect: what it does to a score. level: `warning` where a figure may mislead, else `note`.
    """

    kind: str
    split: str
    level: str
    count: int
    message: str
    effect: str
    at: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" ({', '.join(self.at)}{', …' if self.count > len(self.at) else ''})" if self.at else ""
        return f"{self.split}: {self.message}{where}; {self.effect}"


@dataclass(frozen=True, slots=True)
class _Draft:
    """A finding whose rows have no addresses yet."""

    kind: str
    level: str
    count: int
    message: str
    effect: str
    rows: Sequence[int] = field(default=())


def lint(loaded: Loaded, *, ledger: Notes | None = None) -> list[Finding]:
    """All findings, warnings first. `ledger` is told that the test split is opened."""
    splits = {"train": loaded.train, "dev": loaded.dev}
    if loaded.test is not None:
        splits["test"] = loaded.test
        if ledger:
            ledger.note("linting", loaded.test.source)
    findings = [finding for name, split in splits.items() for finding in _lint_split(name, split, splits)]
    return sorted(findings, key=lambda finding: finding.level != "warning")


def _lint_split(name: str, split: Dataset, splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    drafts = [*_shared(name, split, splits), *_labels(name, split, splits["train"])]
    if split.bad_rows and name == "train":
        message = f"{counted(split.bad_rows, 'row', 'rows')} of {split.source} cannot be used"
        drafts.append(_Draft("bad_rows", "note", split.bad_rows, message, "they are in no split and in no score"))
    wanted = {row for draft in drafts for row in list(draft.rows)[:SHOWN]}
    checks = [check(split) for check in CHECKS]
    ids: dict[int, str] = {}
    for number, example in enumerate(split):
        if number in wanted:
            ids[number] = example.id
        for check in checks:
            check.see(example)
    for draft in drafts:
        at = tuple(ids[row] for row in list(draft.rows)[:SHOWN])
        yield Finding(draft.kind, name, draft.level, draft.count, draft.message, draft.effect, at)
    for check in checks:
        yield from check.findings(name)


# What rows have in common


def _shared(name: str, split: Dataset, splits: Mapping[str, Dataset]) -> Iterator[_Draft]:
    """Duplicates within and across, and one text with several labels."""
    texts = split.survey.texts
    _, first, inverse, counts = np.unique(texts, return_index=True, return_inverse=True, return_counts=True)
    again = np.setdiff1d(np.arange(len(texts)), first)
    if len(again):
        message = counted(len(again), "row repeats", "rows repeat") + " the text of an earlier row"
        effect = "they weigh again in training" if name == "train" else "they count again in the score"
        yield _Draft("duplicates", "note", len(again), message, effect, again.tolist())
    for other in [earlier for earlier in splits if earlier != name][: list(splits).index(name)]:
        inside = np.flatnonzero(np.isin(texts, splits[other].survey.texts))
        if len(inside):
            message = f"{len(inside):,} of {len(texts):,} rows have a text that is in {other}"
            effect = f"what is learned by heart raises the {name} score by up to {len(inside) / len(texts):.1%}"
            yield _Draft("duplicates_across", "warning", len(inside), message, effect, inside.tolist())
        yield from _groups_across(name, split, other, splits[other])
    yield from _conflicts(split, inverse.reshape(-1), counts)


def _groups_across(name: str, split: Dataset, other: str, earlier: Dataset) -> Iterator[_Draft]:
    """Files of the user's own may share groups; splits that are drawn never do."""
    if split.survey.groups is None or earlier.survey.groups is None:
        return
    inside = np.flatnonzero(np.isin(split.survey.groups, earlier.survey.groups))
    if len(inside):
        message = f"{len(inside):,} of {len(split):,} rows are of a group that is in {other}"
        effect = f"what is learned of a group raises the {name} score"
        yield _Draft("groups_across", "warning", len(inside), message, effect, inside.tolist())


def _conflicts(split: Dataset, text: np.ndarray, counts: np.ndarray) -> Iterator[_Draft]:
    """text: int64 (G), the number of each row's text. Different row fingerprints of one text are different labels."""
    _, first = np.unique(split.survey.rows, return_index=True)
    kinds = np.bincount(text[first], minlength=len(counts))
    rows = np.flatnonzero(kinds[text] > 1)
    if len(rows):
        texts = int((kinds > 1).sum())
        message = f"{counted(texts, 'text carries', 'texts carry')} different labels in {len(rows):,} rows"
        effect = (
            "what their numbers differ by is an error that no model can avoid"
            if split.columns.kind == NUMBER
            else f"unless case tells them apart, at least {texts / len(text):.1%} of the rows are lost to any model"
        )
        yield _Draft("conflicting_labels", "warning", len(rows), message, effect, rows.tolist())


def _labels(name: str, split: Dataset, train: Dataset) -> Iterator[_Draft]:
    rows = _rows_of(split)
    if name == "train":
        yield from _single_rows(split, rows)
        yield from _alike(rows)
    elif unseen := sorted(set(rows) - set(_rows_of(train))):
        at = _rows_with(split, unseen)
        message = f"{counted(len(at), 'row carries', 'rows carry')} labels that training never sees: {_listed(unseen)}"
        known = {_folded(label): label for label in _rows_of(train)}
        if twins := [f"{label!r} is {known[_folded(label)]!r}" for label in unseen if _folded(label) in known]:
            message += f" ({', '.join(twins[:SHOWN])} but for {BUT_FOR})"
        effect = f"each is an error in the score, whatever the model says ({len(at) / len(split):.1%} of the rows)"
        yield _Draft("unseen_label", "warning", len(at), message, effect, at)
    if split.columns.kind in (LABEL, ORDERED):
        yield from _imbalance(name, rows, len(split))


def _rows_of(split: Dataset) -> Counter[str]:
    """Label -> rows that carry it; empty for numbers."""
    found: Counter[str] = Counter()
    if split.survey.sets:
        counts = np.bincount(split.survey.labels, minlength=len(split.survey.sets)).tolist()
        for labels, count in zip(split.survey.sets, counts, strict=True):
            for label in labels:
                found[label] += count
    return +found


def _rows_with(split: Dataset, labels: Sequence[str]) -> list[int]:
    wanted = [number for number, found in enumerate(split.survey.sets) if set(found) & set(labels)]
    rows: list[int] = np.flatnonzero(np.isin(split.survey.labels, wanted)).tolist()
    return rows


def _single_rows(split: Dataset, rows: Counter[str]) -> Iterator[_Draft]:
    single = sorted(label for label, count in rows.items() if count == 1)
    if single:
        message = f"{counted(len(single), 'label occurs', 'labels occur')} in one row only: {_listed(single)}"
        weight = "" if split.survey.scheme or split.columns.spans else ", and weigh as much as any other in macro_f1"
        effect = f"they can hardly be learned{weight}"
        yield _Draft("one_example_label", "warning", len(single), message, effect, _rows_with(split, single))


def _alike(rows: Counter[str]) -> Iterator[_Draft]:
    folded: dict[str, list[str]] = {}
    for label in rows:
        folded.setdefault(_folded(label), []).append(label)
    for same in folded.values():
        if len(same) > 1:
            message = f"the labels {_listed(sorted(same))} differ in {BUT_FOR} only"
            effect = "they are learned and scored as different labels"
            yield _Draft("similar_labels", "warning", len(same), message, effect)


def _folded(label: str) -> str:
    """What two labels share that look alike: compatible characters, no case, no white space, nothing invisible."""
    plain = unicodedata.normalize("NFKC", label).casefold()
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) != "Cf")


def _imbalance(name: str, rows: Counter[str], total: int) -> Iterator[_Draft]:
    if len(rows) < 2:
        message = f"there is a single label, {_listed(list(rows))}"
        nothing = "every model is right always: there is nothing to learn"
        effect = nothing if name == "train" else f"the {name} score says nothing of the other labels"
        yield _Draft("imbalance", "warning", 1, message, effect)
        return
    (most, top), (least, low) = rows.most_common()[0], rows.most_common()[-1]
    if top >= 10 * low or top >= 0.8 * total:
        message = f"{most!r} has {top:,} rows, {least!r} {low:,}"
        way_out = ", or set head.class_weights = 'balanced'" if name == "train" else ""
        effect = f"answering {most!r} always gives an accuracy of {top / total:.3f}: read macro_f1{way_out}"
        yield _Draft("imbalance", "note", top, message, effect)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


# What a row shows by itself


class Check(Protocol):
    """Sees every example of a split once, then says what it found."""

    def __init__(self, split: Dataset) -> None: ...

    def see(self, example: Example) -> None:
        """Look at one example."""

    def findings(self, split: str) -> Iterator[Finding]:
        """What was found in the split of this name."""


@dataclass(slots=True)
class _Seen:
    """How often, and where first."""

    count: int = 0
    at: list[str] = field(default_factory=list)

    def add(self, where: str, count: int = 1) -> None:
        self.count += count
        if len(self.at) < SHOWN and where not in self.at:
            self.at.append(where)

    def finding(self, kind: str, split: str, level: str, message: str, effect: str) -> Finding:
        return Finding(kind, split, level, self.count, message, effect, tuple(self.at))


class _Lengths:
    """Texts that are far longer or shorter than the others."""

    def __init__(self, split: Dataset) -> None:
        self._lengths = array("q")
        self._longest: list[tuple[int, str]] = []
        self._shortest = _Seen()

    def see(self, example: Example) -> None:
        length = len(example.text)
        self._lengths.append(length)
        push = heapq.heappush if len(self._longest) < SHOWN else heapq.heappushpop
        push(self._longest, (length, example.id))
        if len(example.text.strip()) < 3:
            self._shortest.add(example.id)

    def findings(self, split: str) -> Iterator[Finding]:
        lengths = np.array(self._lengths)
        median = float(np.median(lengths))
        limit = max(20 * median, 1000)
        count = int((lengths > limit).sum())
        if count:
            at = tuple(where for length, where in sorted(self._longest, reverse=True) if length > limit)
            message = counted(count, "text is", "texts are")
            message += f" longer than {limit:,.0f} characters, where the median is {median:,.0f}"
            yield Finding("long_texts", split, "note", count, message, "they take windows and time, or lose text", at)
        if self._shortest.count and median >= 10:
            message = counted(self._shortest.count, "text has", "texts have") + " fewer than three characters"
            effect = "little to go by: their labels are guessed from the class frequencies"
            yield self._shortest.finding("short_texts", split, "note", message, effect)


class _Spans:
    """Spans that begin or end in white space, or inside a unit."""

    def __init__(self, split: Dataset) -> None:
        self._unit, self._spans = split.unit, 0
        self._white, self._torn = _Seen(), _Seen()

    def see(self, example: Example) -> None:
        if not example.spans:
            return
        self._spans += len(example.spans)
        pieces = [example.text[span.start : span.end] for span in example.spans]
        if white := sum(piece != piece.strip() for piece in pieces):
            self._white.add(example.id, white)
        found = units.find(example.text, self._unit) if example.units is None else example.units
        if torn := len(align(example.spans, found).lost):
            self._torn.add(example.id, torn)

    def findings(self, split: str) -> Iterator[Finding]:
        if self._white.count:
            message = f"{self._white.count:,} of {self._spans:,} spans begin or end in white space"
            effect = "no answer does, so they are compared without it"
            yield self._white.finding("span_white_space", split, "note", message, effect)
        if self._torn.count:
            message = f"{self._torn.count:,} of {self._spans:,} spans begin or end inside a unit"
            effect = f"they cannot be predicted: span_recall is at most {1 - self._torn.count / self._spans:.3f}"
            yield self._torn.finding("span_inside_unit", split, "warning", message, effect)


class _Tags:
    """Rows that break the scheme of the others; spans that only ever begin."""

    def __init__(self, split: Dataset) -> None:
        self._split, self._scheme = split, split.survey.scheme
        self._letters: Counter[str] = Counter()
        self._mixed, self._beside = _Seen(), _Seen()

    def see(self, example: Example) -> None:
        tags = self._split.tags(example)
        if self._scheme is None or tags is None:
            return
        self._letters.update(tag[:1] for tag in tags)
        if first_fault(tags, self._scheme) is not None:
            self._mixed.add(example.id)
        if beside := sum(a == b and a.startswith("B") for a, b in pairwise(tags)):
            self._beside.add(example.id, beside)

    def findings(self, split: str) -> Iterator[Finding]:
        if self._mixed.count:
            message = counted(self._mixed.count, "row does", "rows do")
            message += f" not keep to {self._scheme}, the scheme of the file"
            effect = "their spans are read without loss, but other tools may count other spans"
            yield self._mixed.finding("mixed_schemes", split, "warning", message, effect)
        if set(self._letters) <= {"B", "O"} and self._letters["B"] >= 10:
            message = (
                f"all {self._letters['B']:,} entity tags are B-, {self._beside.count:,} of them after the same tag"
            )
            effect = "every token is scored as an entity of its own; were longer ones meant, the tags are faulty"
            level = "warning" if self._beside.count else "note"
            yield self._beside.finding("only_b_tags", split, level, message, effect)


class _GivenAway:
    """Whether a short field, the first or the last word, or the label's own name tells the label."""

    MOST_VALUES, LONGEST = 5_000, 64

    def __init__(self, split: Dataset) -> None:
        self._single = split.columns.kind in (LABEL, ORDERED)
        self._fields = parse(split.columns.template).fields if split.columns.template else ()
        self._names = [labels[0] for labels in split.survey.sets if len(labels) == 1]
        self._values: dict[str, dict[str, Counter[str]] | None] = {}
        self._own: dict[str, _Seen] = {name: _Seen() for name in self._names}
        self._rows, self._others, self._tried = Counter[str](), Counter[str](), Counter[str]()
        self._number = 0

    def see(self, example: Example) -> None:
        if not self._single:
            return
        label = label_set(example)[0]
        self._number += 1
        number = fingerprint(example.id)
        for field_name, value in self._clues(example):
            self._remember(field_name, value, label)
        text = _loose(example.text)
        self._rows[label] += 1
        if _loose(label) in text:
            self._own[label].add(example.id)
        other = self._names[number % len(self._names)]  # not in step with rows that stand in the order of their labels
        if other != label:  # one other label per row is enough to know how common its name is
            self._tried[other] += 1
            self._others[other] += _loose(other) in text

    def _clues(self, example: Example) -> Iterator[tuple[str, str]]:
        for name in self._fields:
            value = example.fields.get(name)
            if isinstance(value, str | int) and len(str(value)) <= self.LONGEST:
                yield f"the field {name!r}", str(value)
        words = example.text.split(None, 1)
        if len(words) == 2:
            yield "the first word", words[0]
            yield "the last word", example.text.rsplit(None, 1)[1]

    def _remember(self, clue: str, value: str, label: str) -> None:
        seen = self._values.setdefault(clue, {})
        if seen is None:
            return
        seen.setdefault(value, Counter())[label] += 1
        if len(seen) > self.MOST_VALUES:
            self._values[clue] = None  # so many values are no code for a label

    def findings(self, split: str) -> Iterator[Finding]:
        yield from self._telling_values(split)
        for label, seen in self._own.items():
            rows = self._rows[label]
            elsewhere = self._others[label] / self._tried[label] if self._tried[label] else 1.0
            if len(_loose(label)) >= 4 and rows >= 10 and seen.count >= 0.8 * rows and elsewhere <= 0.1:
                message = f"{seen.count:,} of {rows:,} texts of {label!r} hold the label's name"
                effect = "the model may learn the name alone, and fail on texts without it"
                yield seen.finding("label_given_away", split, "warning", message, effect)

    def _telling_values(self, split: str) -> Iterator[Finding]:
        for clue, seen in self._values.items():
            often = [labels for labels in (seen or {}).values() if labels.total() >= 5]
            told = sum(max(labels.values()) for labels in often)
            rows = sum(labels.total() for labels in often)
            answers = {labels.most_common(1)[0][0] for labels in often}
            if len(answers) > 1 and rows >= 0.5 * self._number and told >= 0.99 * rows:
                message = f"{clue} alone tells the label in {rows:,} of {self._number:,} rows"
                effect = "the score says nothing of the rest of the text: leave it out, if it is not there in use"
                yield Finding("label_given_away", split, "warning", rows, message, effect)


def _loose(text: str) -> str:
    """Lower case, with hyphens and underscores as spaces."""
    return text.casefold().replace("-", " ").replace("_", " ")


CHECKS: tuple[type[Check], ...] = (_Lengths, _Spans, _Tags, _GivenAway)
"""One pass runs them all; a further check is one class and one entry."""
