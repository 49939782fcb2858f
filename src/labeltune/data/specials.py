"""The special tokens around each window, and what a tokenizer must be able to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from labeltune.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Specials:
    """The special token ids before and after the tokens of each window."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)


def special_tokens(tokenizer: PreTrainedTokenizerBase, bos: bool | str, eos: bool | str) -> Specials:
    """What stands around each window: with `auto` what the tokenizer adds by itself, with `true` at least bos or eos.

    Raises:
        ModelError: `true` asks for a token that the tokenizer lacks.
    """
    prefix, suffix = _added(tokenizer)
    return Specials(
        _chosen(bos, prefix, tokenizer.bos_token_id, "bos"),
        _chosen(eos, suffix, tokenizer.eos_token_id, "eos"),
    )


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for text that the tokenizer has none for; None where the name is another token's too."""
    number = tokenizer.unk_token_id
    return None if number in (tokenizer.bos_token_id, tokenizer.eos_token_id) else number


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for probe in ("a", "1", ".", "あ", "я"):
        plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    raise ModelError("cannot find the special tokens that this tokenizer adds", at=type(tokenizer).__name__)


def _chosen(wanted: bool | str, added: tuple[int, ...], token: int | None, name: str) -> tuple[int, ...]:
    if wanted == "auto" or (wanted and added):
        return added
    if not wanted:
        return ()
    if token is None:
        raise ModelError(
            f"the tokenizer has no {name} token",
            at=f"data.{name}",
            hint=f'set data.{name} to "auto" or false; a padding token is not needed',
        )
    return (token,)


def capacity(max_tokens: int, specials: Specials, copies: int = 1) -> int:
    """How many tokens of the text a window holds, `copies` times each; a SettingsError where none are left."""
    room = (max_tokens - len(specials)) // copies
    if room < 1:
        of = f" for {copies} copies of a text" if copies > 1 else ""
        message = f"{max_tokens} tokens leave no room{of} between {len(specials)} special tokens"
        raise SettingsError(message, at="data.max_tokens", hint="raise it")
    return room


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without offsets."""
    if not tokenizer.is_fast:
        raise ModelError(
            "this tokenizer cannot say which characters a token covers",
            at=type(tokenizer).__name__,
            hint="put a fast one beside the model (tokenizer.json)",
        )


def check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """A BPE without unknown token and byte fallback drops what it does not know and moves all later offsets."""
    for rare in ("\ue000", "\U0001fae9", "\u0e5b"):
        ranges = tokenizer(f"a{rare}a", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if ranges and ranges[-1][1] < 3:
            raise ModelError(
                "this tokenizer drops characters that it does not know, and its offsets are wrong behind them",
                at=type(tokenizer).__name__,
                hint="load it from its tokenizer.json as it is, or give it an unknown token or byte fallback",
            )
