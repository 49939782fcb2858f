"""Texts into tokens, in chunks and on all cores, with the characters that each token stands for where they are asked.

Shapes: n tokens of a text, special ones left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from labeltune.data.alignment import blank_tokens
from labeltune.errors import DataError
from labeltune.schema import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS, CHUNK_CHARACTERS = 512, 1_000_000  # tokenised together, on all cores


@dataclass(frozen=True, slots=True)
class Tokens:
    """A whole text's tokens. ids: int32 (n); starts, ends: int64 (n), ascending, or empty where nobody reads them."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Tokeniser:
    """A fast tokenizer, asked for no more than is read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def blank(self) -> np.ndarray:
        """(vocabulary) bool: the tokens that stand for white space alone."""
        return blank_tokens(self._tokenizer)

    def stream(self, examples: Iterable[Example], *, places: bool) -> Iterator[tuple[Example, Tokens]]:
        """Each example with its tokens; chunks of the examples are held at a time."""
        for chunk in _chunks(examples):
            yield from zip(chunk, self.of(chunk, places=places), strict=True)

    def of(self, examples: Sequence[Example], *, places: bool) -> Iterator[Tokens]:
        """The tokens of each text.

        Raises:
            DataError: a text is no Unicode.
        """
        texts = [_sound(example) for example in examples]
        return self._with_places(texts) if places else self._ids_alone(texts)

    def _ids_alone(self, texts: list[str]) -> Iterator[Tokens]:
        """Without places, which nobody reads of a document, and which take a tokenizer up to half of its time."""
        fast, nowhere = self._tokenizer.backend_tokenizer, np.empty(0, np.int64)
        fast.no_truncation()  # a saved tokenizer may cut and pad by itself
        fast.no_padding()
        for found in fast.encode_batch_fast(texts, add_special_tokens=False):
            yield Tokens(np.array(found.ids, np.int32), nowhere, nowhere)

    def _with_places(self, texts: list[str]) -> Iterator[Tokens]:
        found = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        for ids, places in zip(found["input_ids"], found["offset_mapping"], strict=True):
            ranges = np.array(places, np.int64).reshape(-1, 2)
            yield Tokens(np.array(ids, np.int32), *np.maximum.accumulate(ranges, axis=0).T)


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += len(example.text)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _sound(example: Example) -> str:
    """The text, which must have a UTF-8 form."""
    try:
        example.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} of the text is a lone surrogate, which no tokenizer reads",
            at=example.id,
            hint="it is half of a character: mend the file's encoding",
        ) from None
    return example.text
