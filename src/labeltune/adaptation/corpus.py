"""Text as rows of tokens in memory-mapped files: tokenised once, streaming, and found again by a resumed run.

A document is a row, or several where it is longer than the context; each row begins with the special tokens that the
tokenizer puts before a text, and the last ends with those after it. Rows that are trained on are cut end to end. Rows
that are held out overlap by half a context, and only what is new in a row is predicted there: every token counts once,
with at least half a context before it.

A document is held out by the hash of its words, so neither its place nor the seed decides, and twins stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from labeltune.adaptation.documents import Texts, divided
from labeltune.adaptation.objectives import Row
from labeltune.data.specials import Specials
from labeltune.errors import DataError, ModelError, RunError, SettingsError
from labeltune.storage import atomic_folder, read_json, write_json

FORMAT = 2
INDEX = "corpus.json"
TRAIN, HELDOUT = "train", "heldout"
TOKENISED_AT_ONCE = 256

_ARRAYS = {"ends": "int64", "first": "int32", "last": "int32"}  # beside the tokens, one number a row


@dataclass(frozen=True)
class Cut:
    """How a document becomes rows of at most `context` tokens, special tokens included.

    vocabulary: entries that the model has; a token beyond them is refused.
    """

    tokenizer: PreTrainedTokenizerBase
    specials: Specials
    context: int
    vocabulary: int

    @property
    def capacity(self) -> int:
        """Tokens of text in a row."""
        capacity = self.context - len(self.specials)
        if capacity < 2:
            message = f"{self.context} tokens leave no room beside {len(self.specials)} special tokens"
            raise SettingsError(message, at="adapt.context", hint="raise it")
        return capacity

    @property
    def dtype(self) -> str:
        """The smallest type that holds every token id of the model."""
        return "uint16" if self.vocabulary <= 1 << 16 else "uint32"

    def refuse_unknown(self, ids: Sequence[int]) -> None:
        """Refuse tokens that the model has no entry for.

        Raises:
            ModelError: there is one.
        """
        if (token := max(ids, default=0)) >= self.vocabulary:
            message = f"the tokenizer gives the token {token}, and the model has {self.vocabulary} entries"
            raise ModelError(message, at="model.name", hint="this is the tokenizer of another model")

    def key(self) -> str:
        """A hash of all that decides the rows of a text."""
        facts = [FORMAT, self.dtype, self.context, self.specials.prefix, self.specials.suffix]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()


@dataclass
class Facts:
    """What was counted. bytes: UTF-8, of the text that is predicted. sealed: left out, because held out elsewhere."""

    documents: int = 0
    divided: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    sealed: int = 0


class Rows:
    """The rows of one part of a corpus. lengths: int64 (rows), tokens each, special ones included."""

    def __init__(self, folder: Path, name: str, dtype: str, facts: Facts) -> None:
        self.facts = facts
        self._tokens = _mapped(folder / f"{name}.tokens", dtype)
        ends, self._first, self._last = (_mapped(folder / f"{name}.{key}", kind) for key, kind in _ARRAYS.items())
        self._bounds = np.concatenate([[0], ends])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self._bounds)

    def new_tokens(self, rows: int) -> int:
        """Tokens of text that the first `rows` rows read for the first time."""
        return int((self._last - self._first)[:rows].sum())

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, number: int) -> Row:
        tokens = self._tokens[self._bounds[number] : self._bounds[number + 1]].astype(np.int32)
        return Row(number, tokens, int(self._first[number]), int(self._last[number]))


@dataclass(frozen=True)
class Corpus:
    """What is trained on, and what is held out."""

    train: Rows
    heldout: Rows


def open_corpus(texts: Sequence[Texts], heldout: Texts | float, cut: Cut, folder: Path) -> Corpus:
    """The rows of the texts, in `folder`; what is there already is only opened.

    heldout: other text, whose documents are left out of `texts`; or the share of the documents to hold out.

    Raises:
        DataError: the texts hold no documents, or the share takes them all.
        ModelError: a token, or a special one, that the model has no entry for.
        RunError: the folder holds the rows of other texts.
    """
    cut.refuse_unknown([*cut.specials.prefix, *cut.specials.suffix])
    key = _key(texts, heldout, cut)
    if not (folder / INDEX).exists():
        _build(texts, heldout, cut, folder, key)
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("key") != key:
        hint = "restore the texts, the tokenizer and the settings of data, or choose another --out"
        raise RunError(
            "the texts, or how they are read, are not those that this training began with", at=str(folder), hint=hint
        )
    return Corpus(*(Rows(folder, name, cut.dtype, Facts(**index[name])) for name in (TRAIN, HELDOUT)))


def _key(texts: Sequence[Texts], heldout: Texts | float, cut: Cut) -> str:
    held = heldout if isinstance(heldout, float) else heldout.key
    facts = [[text.key for text in texts], held, cut.key()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _build(texts: Sequence[Texts], heldout: Texts | float, cut: Cut, folder: Path, key: str) -> None:
    """Read every document once, and put its rows where they belong."""
    with atomic_folder(folder) as partial:
        facts = _write(texts, heldout, cut, partial)
        names = ", ".join(text.name for text in texts)
        if not facts[TRAIN].rows:
            raise _nothing(facts, names)
        write_json(partial / INDEX, {"key": key, **{name: asdict(part) for name, part in facts.items()}})


def _nothing(facts: Mapping[str, Facts], names: str) -> DataError:
    if facts[TRAIN].sealed:
        return DataError("every document is held out as well", at=names, hint="name other text in adapt.heldout")
    if facts[HELDOUT].documents:
        hint = "set adapt.heldout to 0, or to a file"
        return DataError(f"all {facts[HELDOUT].documents} documents fall into the held-out share", at=names, hint=hint)
    return DataError("there is no text in it", at=names, hint="documents are parted by empty lines")


def _write(texts: Sequence[Texts], heldout: Texts | float, cut: Cut, folder: Path) -> dict[str, Facts]:
    with ExitStack() as files:
        sheets = {
            TRAIN: _Sheet(folder, TRAIN, cut, overlap=0, files=files),
            HELDOUT: _Sheet(folder, HELDOUT, cut, overlap=cut.capacity // 2, files=files),
        }
        sealed: set[int] = set()
        if isinstance(heldout, Texts):
            for text in _parts([heldout]):
                sealed.add(_fingerprint(text))
                sheets[HELDOUT].add(text)
        share = int(heldout * 2**64) if isinstance(heldout, float) else 0
        for text in _parts(texts):
            number = _fingerprint(text)
            if number in sealed:
                sheets[TRAIN].facts.sealed += 1
            else:
                sheets[HELDOUT if number < share else TRAIN].add(text)
        for sheet in sheets.values():
            sheet.flush()
        return {name: sheet.facts for name, sheet in sheets.items()}


def _parts(texts: Iterable[Texts]) -> Iterator[str]:
    """Every document that is not blank; one of millions of characters in parts."""
    for source in texts:
        for document in source.documents():
            for part in divided(document):
                if part.strip():
                    yield part


def _fingerprint(text: str) -> int:
    """64 bits of the words' hash: where it lies between 0 and 2**64 decides whether the text is held out.

    White space does not count: a copy with another line end is the same text.
    """
    words = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


class _Sheet:
    """Appends documents to the files of one part, a few hundred at a time."""

    def __init__(self, folder: Path, name: str, cut: Cut, *, overlap: int, files: ExitStack) -> None:
        self.facts = Facts()
        self._cut = cut
        self._overlap = overlap or int(not cut.specials.prefix)  # without a start, a token of context
        self._waiting: list[str] = []
        keys = ("tokens", *_ARRAYS)
        self._files: dict[str, BinaryIO] = {
            key: files.enter_context((folder / f"{name}.{key}").open("wb")) for key in keys
        }

    def add(self, text: str) -> None:
        """Take one more document."""
        self._waiting.append(text)
        if len(self._waiting) == TOKENISED_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Tokenise and write what waits."""
        if not self._waiting:
            return
        bare = not self._cut.specials.prefix  # then a document's first token is not predicted
        encoded = self._cut.tokenizer(
            self._waiting,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=bare,
            verbose=False,
        )
        offsets = encoded["offset_mapping"] if bare else [None] * len(self._waiting)
        for text, ids, places in zip(self._waiting, encoded["input_ids"], offsets, strict=True):
            if ids:
                self._cut.refuse_unknown(ids)
                self._document(np.array(ids, self._cut.dtype))
                self.facts.bytes += len((text[places[0][1] :] if places else text).encode())
        self._waiting = []

    def _document(self, ids: np.ndarray) -> None:
        prefix, suffix = (np.array(part, ids.dtype) for part in (self._cut.specials.prefix, self._cut.specials.suffix))
        windows = list(windows_of(len(ids), self._cut.capacity, self._overlap))
        for start, first, end in windows:
            parts = [prefix, ids[start:end], suffix if end == len(ids) else suffix[:0]]
            self._row(np.concatenate(parts), len(prefix) + first - start, len(prefix) + end - start)
        self.facts.documents += 1
        self.facts.divided += len(windows) > 1

    def _row(self, tokens: np.ndarray, first: int, last: int) -> None:
        self.facts.rows += 1
        self.facts.tokens += len(tokens)
        self._files["tokens"].write(tokens.tobytes())
        for name, value in (("ends", self.facts.tokens), ("first", first), ("last", last)):
            self._files[name].write(np.array(value, _ARRAYS[name]).tobytes())


def windows_of(tokens: int, capacity: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, first new token, end) of each window over a document; neighbours share `overlap` tokens.

    >>> list(windows_of(10, 6, 2))
    [(0, 0, 6), (4, 6, 10)]
    """
    end = min(tokens, capacity)
    yield 0, 0, end
    while end < tokens:
        start, first = end - overlap, end
        end = min(tokens, start + capacity)
        yield start, first, end


def _mapped(path: Path, dtype: str) -> np.ndarray:
    """A file of numbers, read where it lies."""
    if path.stat().st_size == 0:  # nothing cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
