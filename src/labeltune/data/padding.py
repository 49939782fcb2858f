"""Padding as text: rows made as long as the longest of their block, as published scripts pad before they batch.

labeltune never pads. Some published figures were measured by models that attended to padding and pooled over it;
`data.pad_as_text = "block:1000"` shows what that does, with the pad tokens as ordinary tokens of the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from labeltune.data.settings import DataConfig
from labeltune.errors import ModelError, SettingsError
from labeltune.schema import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Padding:
    """How rows are made equally long.

    block: so many rows in a row are padded to the longest of them. token: the id of the pad token.
    pooled: the piece of a row grows over its padding.
    """

    block: int
    token: int
    pooled: bool

    @classmethod
    def of(cls, config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, pooled: bool) -> Padding | None:
        """What the settings ask for; None for no padding, the default.

        Raises:
            SettingsError: long text would be read in windows. ModelError: no token can serve as padding.
        """
        if config.pad_as_text is None:
            return None
        if config.long == "window":
            hint = 'set data.long to "truncate", as the published scripts do'
            raise SettingsError("padding stands at the end of a text, not of windows", at="data.pad_as_text", hint=hint)
        token = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), None)
        if token is None:
            raise ModelError("the tokenizer has neither a pad nor an EOS token", at="data.pad_as_text")
        return cls(block_of(config), int(token), pooled)

    def pad(self, rows: Iterable[Encoded]) -> Iterator[Encoded]:
        """The rows in order, each as long as the longest of its block."""
        left = iter(rows)
        while block := list(islice(left, self.block)):
            longest = max(len(row.tokens) for row in block)
            yield from (self._padded(row, longest) for row in block)

    def _padded(self, row: Encoded, length: int) -> Encoded:
        missing = length - len(row.tokens)
        return replace(
            row,
            tokens=np.concatenate((row.tokens, np.full(missing, self.token, np.int32))),
            window_lengths=np.array([length], np.int32),
            piece_end=row.piece_end + np.int32(missing) if self.pooled else row.piece_end,
        )


def block_of(config: DataConfig) -> int:
    """How many rows in a row are made equally long; 1 where none are."""
    return int(config.pad_as_text.removeprefix("block:")) if config.pad_as_text else 1
