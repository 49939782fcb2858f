"""Which column carries what: as set, or guessed where only one reading is possible, and said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from labeltune.data.readers.conll import is_tag
from labeltune.data.readers.rows import missing, written_list
from labeltune.data.settings import DataConfig
from labeltune.data.templates import parse
from labeltune.errors import DataError, SettingsError, nearest

LABEL, LABELS, NUMBER, ORDERED, TAGS = "label", "labels", "number", "ordered", "tags"

KINDS = {
    "classification": LABEL,
    "multilabel": LABELS,
    "regression": NUMBER,
    "ordinal": ORDERED,
    "tagging": TAGS,
}
"""Task -> what a row of it carries: one label, several, a number, a label with an order, tags or spans."""

_TASK_OF = {kind: task for task, kind in KINDS.items()}

TEXTS = ("text", "sentence", "content", "document", "review", "message", "utterance", "tweet", "comment", "body")
TITLES, BODIES = ("title", "headline", "subject"), ("description", "body", "content", "abstract")
LABEL_COLUMNS = ("label", "labels", "category", "class", "class_index", "target", "intent", "sentiment", "topic")
NUMBER_COLUMNS = (*LABEL_COLUMNS, "score", "rating", "value", "stars")
TOKEN_COLUMNS, TAG_COLUMNS = ("tokens", "words", "token", "word"), ("tags", "ner_tags", "ner", "tag", "labels")
SPAN_COLUMNS = ("spans", "entities")
MANY = 20
"""Different fractions among the first rows of a table from which they are measures, not names."""

Sample = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Columns:
    """What carries what. `kind`: what a row is labelled with, None where it need not be."""

    kind: str | None = None
    text: str | None = None
    label: str | None = None
    tokens: str | None = None
    tags: str | None = None
    spans: str | None = None
    template: str | None = None

    def said(self, at: str) -> str:
        """The columns in a sentence."""
        roles = [f"{role} from {name!r}" for role in ROLES if (name := getattr(self, role))]
        return f"{at}: " + ", ".join(roles + ([f"template {self.template!r}"] if self.template else []))


ROLES = ("text", "label", "tokens", "tags", "spans")


def kind_of(task: str | None) -> str | None:
    """What the rows of a task carry; None where the task is to be guessed."""
    if task is not None and task not in KINDS:
        raise SettingsError(f"{task!r} is no task", at="task", hint=nearest(task, KINDS))
    return KINDS[task] if task else None


def task_of(kind: str) -> str:
    """The task that rows of this kind are for."""
    return _TASK_OF[kind]


def find_columns(
    sample: Sample, config: DataConfig, kind: str | None, *, labelled: bool, at: str, strict: bool = True
) -> Columns:
    """The columns of a split, from its first rows.

    labelled: whether rows must carry labels. strict: whether a column that the settings name must be there; a further
    split that lacks it (another file, another layout) is guessed anew.

    Raises:
        DataError: a column that is not there, none that fits, or several that do.
    """
    search = _Search(sample, config, at, strict)
    if not labelled:
        return search.unlabelled(kind)
    search.group()
    kind = kind or search.guess_kind()
    if kind == TAGS:
        return search.tagging()
    found = search.with_text(Columns(kind=kind))
    return replace(found, label=search.label(kind, found))


def is_another_text(found: Columns, config: DataConfig) -> bool:
    """Whether the text stands in another column than in training, one that is not even called as texts are."""
    return bool(found.text and config.text and found.text != config.text and _folded(found.text) not in TEXTS)


def refuse_another_text(found: Columns, config: DataConfig, at: str) -> None:
    """Refuse rows without the text column of the training.

    Raises:
        DataError: the text would be of another column; who reads a file can be told so, who gets an answer cannot.
    """
    if is_another_text(found, config):
        hint = f"the row has {found.text!r}; name the columns as in training"
        raise DataError(f"the row has no text ({config.text!r} is not there)", at=at, hint=hint)


class _Search:
    """The names and first values of a split's columns, and what the settings say of them."""

    def __init__(self, sample: Sample, config: DataConfig, at: str, strict: bool) -> None:
        self._config, self._at, self._strict = config, at, strict
        self.names = list(dict.fromkeys(name for row in sample for name in row))
        self._values = {n: [row[n] for row in sample if n in row and not missing(row[n])] for n in self.names}

    # What is there

    def _set(self, role: str) -> str | None:
        """The column that the settings name for this role, if it is there."""
        name: str | None = getattr(self._config, role)
        if name is None or name in self.names:
            return name
        if self._strict:
            raise DataError(f"data.{role} = {name!r} is no column", at=self._at, hint=nearest(name, self.names))
        return None

    def group(self) -> str | None:
        """The column that says what belongs together, if the settings name one."""
        return self._set("group")

    def _like(self, candidates: Sequence[str], fits: Callable[[object], bool]) -> list[str]:
        return [name for name in self._called(candidates) if self._mostly(name, fits)]

    def _called(self, candidates: Sequence[str]) -> list[str]:
        return [name for name in self.names if _folded(name) in candidates]

    def _mostly(self, name: str, fits: Callable[[object], bool]) -> bool:
        """Do most values fit? A column is not made another one by a bad row."""
        values = self._values[name]
        return 2 * sum(map(fits, values)) >= len(values)

    def _only(self, role: str, candidates: Sequence[str], fits: Callable[[object], bool]) -> str | None:
        """The column that is set, or the only one that looks like it; None without any."""
        found = [name] if (name := self._set(role)) else self._like(candidates, fits)
        if len(found) > 1:
            told = " or ".join(map(repr, found))
            raise DataError(f"the {role} may be {told}", at=self._at, hint=f"choose: data.{role} = {found[0]!r}")
        return found[0] if found else None

    def _none(self, role: str, example: str) -> DataError:
        listed = ", ".join(map(repr, self.names)) or "none"
        hint = f"name it, data.{role} = {example!r}; a file without header needs data.columns"
        if role == "text" and (several := self._texts())[1:]:
            joined = " ".join(f"{{{name}}}" for name in several)
            hint = f"name it, data.text = {example!r}, or join several: data.template = {joined!r}"
        return DataError(f"no column is clearly the {role} among {listed}", at=self._at, hint=hint)

    def _texts(self) -> list[str]:
        """Columns of strings that are not called a label, where most rows have a text of their own."""
        strings = [n for n in self.names if self._values[n] and self._mostly(n, _is_text)]
        return [
            n
            for n in strings
            if n not in self._called(LABEL_COLUMNS) and 2 * len({*map(str, self._values[n])}) > len(self._values[n])
        ]

    # The kind

    def guess_kind(self) -> str:
        """Tags or spans -> tagging, lists of labels -> multilabel, fractions -> regression, else one label."""
        config = self._config
        tagged = bool(self._set("tags") or self._set("spans") or self._tag_columns() or self._span_columns())
        named = self._label_columns(LABEL) or self._label_columns(NUMBER)
        labels = [name for name in named if name not in self._tag_columns()]
        label = self._set("label") or (labels[0] if labels else None)
        chosen = (config.tags or config.spans, config.label)
        if tagged and label and not any(chosen):
            message = f"the rows carry labels ({label!r}) and tags or spans"
            raise DataError(message, at=self._at, hint="say which: task = 'classification' or task = 'tagging'")
        if tagged and not config.label:
            return TAGS
        if not label or not self._values[label]:
            return LABEL
        return LABELS if self._mostly(label, _is_several) else NUMBER if self._measures(label) else LABEL

    def _measures(self, label: str) -> bool:
        """Are the labels measures: fractions, and in a table, where `3.11` may be a name, many of them?"""
        written = {value for value in self._values[label] if isinstance(value, str)}
        return self._mostly(label, _is_fraction) and (not written or len(written) >= MANY)

    def _tag_columns(self) -> list[str]:
        if not (self._set("tokens") or self._like(TOKEN_COLUMNS, _is_words)):
            return []
        return [
            name for name in self._like(TAG_COLUMNS, _is_tags) if _folded(name) != "labels" or self._per_token(name)
        ]

    def _per_token(self, name: str) -> bool:
        """Does a list of labels hold one per token?"""
        tokens = self._set("tokens") or self._like(TOKEN_COLUMNS, _is_words)[0]
        pairs = zip(self._values[name], self._values[tokens], strict=False)
        return all(isinstance(a, list) and isinstance(b, list) and len(a) == len(b) for a, b in pairs)

    def _span_columns(self) -> list[str]:
        return [name for name in self._like(SPAN_COLUMNS, _is_spans) if self._values[name]]

    # The roles

    def label(self, kind: str, found: Columns) -> str:
        """The label's column."""
        candidates = NUMBER_COLUMNS if kind in (NUMBER, ORDERED) else LABEL_COLUMNS
        if name := self._only("label", candidates, _is_label) or _single(self._called(candidates)):
            return name
        if named := self._config.label:  # of another file; what is left here by chance is no label
            listed = ", ".join(map(repr, self.names))
            hint = "name the one that holds the label, --set data.label=NAME"
            raise DataError(f"there is no column {named!r} among {listed}", at=self._at, hint=hint)
        used = {found.text, found.tokens, *(parse(found.template).fields if found.template else ())}
        rest = [name for name in self.names if name not in used and self._mostly(name, _is_label)]
        if len(rest) != 1:
            raise self._none("label", rest[0] if rest else "label")
        return rest[0]

    def _label_columns(self, kind: str) -> list[str]:
        return self._like(NUMBER_COLUMNS if kind == NUMBER else LABEL_COLUMNS, _is_label)

    def tagging(self) -> Columns:
        """Tokens with tags, or a text with spans."""
        spans = None if self._config.tags else self._only("spans", SPAN_COLUMNS, _is_spans)
        if spans and not self._config.spans and self._tag_columns():
            hint = f"choose: data.spans = {spans!r} or data.tags = {self._tag_columns()[0]!r}"
            raise DataError("the rows carry tags and spans", at=self._at, hint=hint)
        if spans:
            return self.with_text(Columns(kind=TAGS, spans=spans), tokens=False)
        tokens = self._only("tokens", TOKEN_COLUMNS, _is_words)
        tags = self._only("tags", TAG_COLUMNS, _is_cells)
        if not tokens:
            raise self._none("tokens", "tokens")
        if not tags:
            raise self._none("tags", "tags")
        return Columns(kind=TAGS, tokens=tokens, tags=tags, template=self._template(tokens))

    def unlabelled(self, kind: str | None) -> Columns:
        """Tokens where the rows give them to a tagger, else the text; labels are not looked at."""
        for role in ("text", "tokens"):
            self._set(role)  # to refuse one that is not there, even where the other is read
        if kind == TAGS:
            tokens = self._set("tokens") or next(iter(self._like(TOKEN_COLUMNS, _is_word_list)), None)
            if tokens:
                return Columns(kind=TAGS, tokens=tokens, template=self._template(tokens))
            return self.with_text(Columns(kind=TAGS), tokens=False)
        return self.with_text(Columns())

    def with_text(self, columns: Columns, *, tokens: bool = True) -> Columns:
        """`columns` with what the text is made of."""
        if self._config.template:
            text = self._set("text")
            template = self._template(text)
            return replace(columns, template=template, text=text if template is None else self._labelled_field(columns))
        if not self._set("text"):
            if tokens and (named := self._set("tokens")):
                return replace(columns, tokens=named)
            if pair := self._titled():
                return replace(columns, template=f"{{{pair[0]}}}\n{{{pair[1]}}}")
        if text := self._only("text", TEXTS, _is_text):
            return replace(columns, text=text)
        words = self._only("tokens", TOKEN_COLUMNS, _is_words) if tokens else None
        if words:
            return replace(columns, tokens=words)
        return replace(columns, text=_single(self._called(TEXTS)) or self._last_resort(columns))

    def _template(self, text: str | None) -> str | None:
        """The template; None for a split that has none of its fields but the column that `data.text` names."""
        template = self._config.template
        if template is None:
            return None
        fields = parse(template).fields
        if self._config.text and text and text not in fields and not set(fields) & set(self.names):
            return None
        parse(template).refuse_missing(self.names, at=self._at)
        return template

    def _labelled_field(self, columns: Columns) -> str | None:
        """The field of the template that spans sit on."""
        if columns.kind != TAGS:
            return None
        fields = parse(self._config.template or "").fields
        named = self._set("text")
        found = [named] if named else list(fields) if len(fields) == 1 else [f for f in fields if _folded(f) in TEXTS]
        if len(found) != 1:
            raise self._none("text", fields[0])
        return found[0]

    def _titled(self) -> tuple[str, str] | None:
        """A title and a body, where there is one of each and nothing called text."""
        titles, bodies = self._like(TITLES, _is_text), self._like(BODIES, _is_text)
        texts = [name for name in self._like(TEXTS, _is_text) if name not in bodies]
        return (titles[0], bodies[0]) if len(titles) == len(bodies) == 1 and not texts else None

    def _last_resort(self, columns: Columns) -> str:
        """The only column of strings that is not the label."""
        taken = {columns.spans, self._set("label"), *self._label_columns(NUMBER)}
        rest = [n for n in self.names if n not in taken and self._values[n] and self._mostly(n, _is_text)]
        if len(rest) != 1:
            raise self._none("text", rest[0] if rest else "text")
        return rest[0]


def _single(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _folded(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_label(value: object) -> bool:
    return isinstance(value, str | int | float) or _is_label_list(value)


def _is_label_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str | int) for part in value)


def _is_fraction(value: object) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, float) and isfinite(value) and not value.is_integer()


def _is_cells(value: object) -> bool:
    return isinstance(value, str) or _is_label_list(value)


def _is_tags(value: object) -> bool:
    return (
        _is_label_list(value) or _is_written_list(value) or (isinstance(value, str) and all(map(is_tag, value.split())))
    )


def _is_several(value: object) -> bool:
    return _is_label_list(value) or _is_written_list(value)


def _is_words(value: object) -> bool:
    return isinstance(value, str) or _is_word_list(value)


def _is_word_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_spans(value: object) -> bool:
    return (isinstance(value, list) and all(isinstance(p, Mapping | list) for p in value)) or _is_written_list(value)


def _is_written_list(value: object) -> bool:
    """A list in a table's cell."""
    return isinstance(value, str) and written_list(value) is not None
