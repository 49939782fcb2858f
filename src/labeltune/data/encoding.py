"""Turn characters into tokens: an example's text into windows of token ids, its targets into token ranges.

No text is tokenised twice: windows and cuts divide the tokens of the whole text.

Shapes: n tokens of a text (special ones left out), N tokens of its windows, W windows, t targets.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

from labeltune.data.alignment import Spans
from labeltune.data.cutting import Cutter, Row, Targets
from labeltune.data.padding import Padding
from labeltune.data.settings import DataConfig
from labeltune.data.specials import check_fast, check_offsets, special_tokens
from labeltune.data.tokenising import Tokeniser
from labeltune.data.windows import Windows
from labeltune.errors import SettingsError
from labeltune.schema import Encoded, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

FORMAT = 1  # part of every key; to be raised when the same settings encode differently


class Shown(NamedTuple):
    """A token as `inspect` shows it. role: `read`, or what is not read: `owned`, `context`, `special`."""

    text: str
    id: int
    role: str


@dataclass(frozen=True, slots=True)
class _Stream:
    """The windows of a row, one after the other.

    tokens: int32 (N). begins: int64 (W + 1), the windows' boundaries. shift: int64 (W), token i of the row stands at
    shift[w] + i in window w (in its last copy, with `data.repeat`; the copy before it lies copies[w] tokens earlier).
    """

    windows: Windows
    tokens: np.ndarray
    begins: np.ndarray
    shift: np.ndarray
    copies: np.ndarray


class Encoder:
    """Encodes examples: one tokenizer, one `data` section, one kind of target.

    max_tokens: the longest window, special tokens included.
    targets: `document` is one target over the whole text; `units` is one target each.
    edge: the end of a piece that the pooling reads. For documents, `last` lets the piece run on to the window's end,
        special tokens included, and `first` lets it begin where the window does; `inside` is the owned tokens alone,
        or with `whole_special` also the special tokens around the whole text.
    label_of: (example, the targets' character ranges) -> `Encoded.labels`.

    Raises:
        ModelError: the tokenizer gives no offsets or wrong ones, or lacks a special token that was asked for.
        SettingsError: no token fits between the special ones; or neighbouring rows around a document.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: DataConfig,
        max_tokens: int,
        targets: Targets,
        label_of: Callable[[Example, Spans], np.ndarray],
        whole_special: bool = False,
        edge: Literal["first", "last", "inside"] = "inside",
    ) -> None:
        check_fast(tokenizer)
        if config.context and targets == "document":
            raise SettingsError("neighbouring rows are context for tagging only", at="data.context", hint="set it to 0")
        if config.repeat and whole_special:
            message = "earlier copies stand between the special tokens and the copy that is read"
            raise SettingsError(message, at="model.pool_special", hint="set it to false, or data.repeat to 0")
        self.tokenizer, self.config, self.max_tokens = tokenizer, config, max_tokens
        self.targets, self.label_of, self.whole_special, self.edge = targets, label_of, whole_special, edge
        self.specials = special_tokens(tokenizer, config.bos, config.eos)
        self._prefix, self._suffix = (np.array(ids, np.int32) for ids in (self.specials.prefix, self.specials.suffix))
        self._tokens = Tokeniser(tokenizer)
        self._cutter = Cutter(self._tokens, self.specials, config=config, max_tokens=max_tokens, targets=targets)
        self.padding = Padding.of(config, tokenizer, pooled=targets == "document" and edge == "inside")
        self._offsets = targets == "units" or config.long == "truncate"
        if self._offsets:
            check_offsets(tokenizer)

    @property
    def capacity(self) -> int:
        """The tokens of a text that one window holds."""
        return self._cutter.capacity

    def encode(self, example: Example) -> Encoded:
        """The example alone, without neighbours."""
        (text,) = self._tokens.of([example], places=self._offsets)
        return self._encoded(example, self._cutter.fit(example, text))

    def encode_many(self, examples: Iterable[Example]) -> Iterator[Encoded]:
        """The examples in order, tokenised in chunks; with `data.context`, each between its neighbours.

        Neighbours are of the same group where `data.group` names one. Their tokens fill what a row leaves of its
        window, the nearest first, half on either side; a row in several windows is its own context. With
        `data.pad_as_text`, rows are as long as the longest of their block.
        """
        encoded = self._encode_many(examples)
        return encoded if self.padding is None else self.padding.pad(encoded)

    def encode_between(
        self, before: Sequence[Example], examples: Sequence[Example], after: Sequence[Example]
    ) -> list[Encoded]:
        """`examples` as `encode_many` would encode them in a longer stream, whose neighbouring rows are given.

        `data.context` rows on either side are enough; `data.pad_as_text` wants whole blocks.
        """
        stream = self._encode_many([*before, *examples, *after])
        encoded = islice(stream, len(before), len(before) + len(examples))
        return list(encoded if self.padding is None else self.padding.pad(encoded))

    def _encode_many(self, examples: Iterable[Example]) -> Iterator[Encoded]:
        texts = self._tokens.stream(examples, places=self._offsets)
        rows = ((one, self._cutter.fit(one, text)) for one, text in texts)
        for before, (example, row), after in neighbours(rows, self.config.context):
            near = ([r.ids for other, r in side if self._same_group(other, example)] for side in (before, after))
            yield self._encoded(example, row, *near)

    def key(self, *parts: str) -> str:
        """A hash of all that decides the encoding: settings, tokenizer, and `parts` (the data's hash, the labels)."""
        config = self.config.model_dump(mode="json", exclude={"train", "dev", "test"})
        rest = (
            self.max_tokens,
            self.targets,
            self.edge,
            self.whole_special,
            self.specials.prefix,
            self.specials.suffix,
        )
        digest = hashlib.sha256(json.dumps([FORMAT, config, rest, parts], sort_keys=True).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()

    def show(self, example: Example) -> list[Shown]:
        """The tokens of the example's windows, in order, with what becomes of each."""
        (text,) = self._tokens.of([example], places=True)
        row = self._cutter.fit(example, text)
        stream = self._stream(example, row, (), ())
        roles, source = _roles(stream, self._encoded(example, row), self.edge, self.config.repeat)
        names = list(self.tokenizer.convert_ids_to_tokens(stream.tokens.tolist()))
        for place in np.flatnonzero((source >= 0) & ~self._tokens.blank[stream.tokens]):
            token = row.source[source[place]]
            names[place] = example.text[text.starts[token] : text.ends[token]] or names[place]
        return [Shown(*each) for each in zip(names, stream.tokens.tolist(), roles.tolist(), strict=True)]

    def _encoded(
        self, example: Example, row: Row, before: Sequence[np.ndarray] = (), after: Sequence[np.ndarray] = ()
    ) -> Encoded:
        stream = self._stream(example, row, before, after)
        starts, ends, weights = self._unit_pieces(row, stream) if self.targets == "units" else self._pieces(row, stream)
        return Encoded(
            tokens=stream.tokens,
            window_lengths=(stream.begins[1:] - stream.begins[:-1]).astype(np.int32),
            piece_start=starts.astype(np.int32),
            piece_end=ends.astype(np.int32),
            piece_weight=np.maximum(weights, 1).astype(np.int32),
            piece_target=np.arange(len(starts), dtype=np.int32) * (self.targets == "units"),
            target_span=np.array(row.spans, np.int32).reshape(-1, 2),
            labels=self.label_of(example, row.spans),
            dropped_units=row.dropped_units,
            dropped_characters=row.dropped_characters,
        )

    def _stream(self, example: Example, row: Row, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> _Stream:
        plan = self._cutter.windows(example, row)
        left, right = _around(before, after, self.capacity - len(row.ids))
        prefix, suffix, repeat = self._prefix, self._suffix, self.config.repeat
        parts = [
            np.concatenate((prefix, *(left, row.ids[start:end], right) * (repeat + 1), suffix))
            for start, end in zip(plan.starts, plan.ends, strict=True)
        ]
        begins = np.array([0, *accumulate(map(len, parts))])
        tokens = np.concatenate(parts) if len(parts) > 1 else parts[0]
        copies = len(left) + plan.ends - plan.starts + len(right)
        shift = begins[:-1] + len(prefix) + repeat * copies + len(left) - plan.starts
        return _Stream(plan, tokens, begins, shift, copies)

    def _unit_pieces(self, row: Row, stream: _Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shift = stream.shift[stream.windows.owner(row.first)]
        if len(row.ids) == 0:  # every character was dropped: the units read the window's first special token
            return np.zeros_like(row.first), np.ones_like(row.last), np.ones_like(row.first)
        return shift + row.first, shift + row.last, row.last - row.first

    def _pieces(self, row: Row, stream: _Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One piece per window: starts, ends, weights (W)."""
        borders, begins = stream.windows.borders, stream.begins
        starts, ends = stream.shift + borders[:-1], stream.shift + borders[1:]
        if self.edge == "first" or len(row.ids) == 0:
            starts = begins[:-1].copy()
        if self.edge == "last" or len(row.ids) == 0:
            ends = begins[1:].copy()
        if self.whole_special:
            starts[0], ends[-1] = 0, begins[-1]
        return starts, ends, borders[1:] - borders[:-1]

    def _same_group(self, one: Example, other: Example) -> bool:
        name = self.config.group
        return name is None or one.fields.get(name) == other.fields.get(name)


def neighbours(rows: Iterable[T], count: int) -> Iterator[tuple[list[T], T, list[T]]]:
    """Each row between the `count` rows before it and after it, as many as there are."""
    rows = iter(rows)
    before: deque[T] = deque(maxlen=count)
    ahead = deque(islice(rows, count + 1))
    while ahead:
        row = ahead.popleft()
        yield list(before), row, list(ahead)
        before.append(row)
        ahead.extend(islice(rows, 1))


def _around(before: Sequence[np.ndarray], after: Sequence[np.ndarray], spare: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest `spare` tokens of the neighbours, half on either side where both have them."""
    nothing = np.empty(0, np.int32)
    if spare <= 0 or not (before or after):
        return nothing, nothing
    left, right = np.concatenate((nothing, *before)), np.concatenate((nothing, *after))
    size = min(len(left), max(spare // 2, spare - len(right)))
    return left[len(left) - size :], right[: spare - size]


def _roles(stream: _Stream, encoded: Encoded, edge: str, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """By token of the stream, (N) each: its role, and its place in the row (-1 for a special token)."""
    source = np.full(len(stream.tokens), -1)
    roles = np.full(len(stream.tokens), "special", dtype="<U7")
    plan = stream.windows
    for window, shift in enumerate(stream.shift):
        held = np.arange(plan.starts[window], plan.ends[window])
        for earlier in range(repeat + 1):
            there = shift + held - earlier * stream.copies[window]
            source[there], roles[there] = held, "context"
        roles[shift + plan.borders[window] : shift + plan.borders[window + 1]] = "owned"
    for start, end in zip(encoded.piece_start, encoded.piece_end, strict=True):
        first, last = (end - 1 if edge == "last" else start), (start + 1 if edge == "first" else end)
        roles[first:last] = "read"
    return roles, source
