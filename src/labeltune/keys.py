"""Randomness that is addressed, not consumed: every random value is a pure function of a key and of where it is used.

There is no generator state, so nothing has to be saved, and neither packing, micro-batches, recomputation under
gradient checkpointing, neighbours in a pass nor resuming can change a value. A `Key` names a purpose (trial seed, then
`fold` by purpose, step, module …); `keep_mask` adds the address of a value (row, token, feature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import torch

# Odd multipliers with good avalanche; 64-bit from splitmix64 and Weyl sequences, 32-bit from lowbias32 (Wellons 2018).
_ROW, _TOKEN = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
_MIX64 = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MIX32 = (0x7FEB352D, 0x846CA68B, 0x9E3779B1)


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a random purpose: 64 bits, refined by `fold`.

    >>> step_key = Key.of(42).fold("dropout", 17)
    """

    value: int

    @classmethod
    def of(cls, seed: int) -> Key:
        """The root key of a trial's seed."""
        return cls(0).fold("seed", seed)

    def fold(self, *parts: int | str) -> Key:
        """The key of a narrower purpose; the same on every platform, and `fold(a, b)` is `fold(a).fold(b)`."""
        value = self.value
        for part in parts:
            text = f"{value}:s:{part}" if isinstance(part, str) else f"{value}:i:{int(part)}"
            value = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
        return Key(value)


def permutation(key: Key, n: int) -> np.ndarray:
    """A shuffled `arange(n)`, int64: the order of n raw Philox words, so no release of numpy can change it."""
    return np.argsort(np.random.Philox(key=key.value).random_raw(n), kind="stable")


def generator(key: Key) -> torch.Generator:
    """A fresh CPU generator, for initial values drawn at once; never keep one."""
    return torch.Generator().manual_seed(key.value)


def keep_mask(key: Key, token_row: torch.Tensor, token_index: torch.Tensor, features: int, rate: float) -> torch.Tensor:
    """Which features of which tokens dropout keeps: bool (N, features), a pure function of key, row, token, feature.

    token_row, token_index: int64 (N). The rate is rounded to 1/65,536; scaling by 1/(1 - rate) is the caller's.
    """
    return _keep(_signed(key.value, 64), token_row, token_index, features, _threshold(rate))


def keep_masks(
    keys: Sequence[Key | None],
    rates: Sequence[float],
    boundaries: Sequence[int],
    token_row: torch.Tensor,
    token_index: torch.Tensor,
    features: int,
) -> torch.Tensor:
    """`keep_mask` of several slices at once, each with its key and rate; a slice without a key keeps everything.

    boundaries: K + 1 token numbers. One sequence of kernels serves all slices: launches are what a small pass costs.
    """
    sizes = [b - a for a, b in pairwise(boundaries)]
    facts = torch.tensor([*numbers_of(keys, rates), sizes], device=token_row.device)
    value, limit = torch.repeat_interleave(facts[:2], facts[2], dim=1, output_size=len(token_row))
    return _keep(value, token_row, token_index, features, limit.to(torch.int16).unsqueeze(1))


def numbers_of(keys: Sequence[Key | None], rates: Sequence[float]) -> tuple[list[int], list[int]]:
    """Keys as signed 64-bit numbers, and rates as the limits of a 16-bit hash; without a key nothing is dropped."""
    values = [_signed(key.value, 64) if key else 0 for key in keys]
    return values, [_threshold(rate if key else 0.0) for key, rate in zip(keys, rates, strict=True)]


def hashes_of(numbers: torch.Tensor, row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Two int32 hashes of each token, (2, N), which depend on every bit of key, row and token; for `kept`.

    numbers, row, index: int64 (N); the first from `numbers_of`, spread over the tokens. Written for a compiler.
    """
    x = row * _signed(_ROW, 64) + index * _signed(_TOKEN, 64) + numbers
    for shift, factor in zip((30, 27), _MIX64, strict=True):
        x = _shifted(x, shift, 64) * _signed(factor, 64)
    x = _shifted(x, 31, 64)
    return torch.stack([x.to(torch.int32), (x >> 32).to(torch.int32)])


def kept(hashes: torch.Tensor, limits: torch.Tensor, features: int) -> torch.Tensor:
    """The mask of `keep_masks`, (N, features), written for a compiler: one formula for each value, nothing in place.

    hashes: int32 (2, N) from `hashes_of`. limits: (N), from `numbers_of`, spread over the tokens.
    """
    first, second = hashes.unsqueeze(2)
    feature = torch.arange(features, dtype=torch.int32, device=hashes.device)
    word = first ^ ((feature >> 1) + 1) * _signed(_MIX32[2], 32)
    word = _shifted(word * _signed(_MIX32[0], 32), 15, 32) + second
    for factor in _MIX32[1:]:
        word = _shifted(word * _signed(factor, 32), 16, 32)
    half = (word >> (feature & 1) * 16).to(torch.int16)
    keep: torch.Tensor = half >= limits.unsqueeze(1)
    return keep


def _shifted(x: torch.Tensor, shift: int, bits: int) -> torch.Tensor:
    """`x ^ x >>> shift`."""
    return x ^ (x >> shift & (1 << (bits - shift)) - 1)


def _threshold(rate: float) -> int:
    """The int16 below which a hash means `dropped`."""
    return min(round(rate * 65536), 65535) - 32768


def _keep(
    value: int | torch.Tensor, row: torch.Tensor, index: torch.Tensor, features: int, limit: int | torch.Tensor
) -> torch.Tensor:
    """Hash every (token, feature) and compare: bool (N, features).

    A token's 64-bit hash enters a 32-bit multiply-xorshift mix in two halves, together with its feature's hash; each
    32-bit word decides two features. Integer arithmetic only, so every device draws the same mask. About a sixth of
    the time of `F.dropout` at 1024 x 768 on one CPU thread (1.1 against 6 ms).
    """
    first, second = _token_hash(value, row, index)  # (N, 1) each
    words = first ^ _feature_hash((features + 1) // 2, row.device)  # (N, ceil(features / 2))
    scratch = torch.empty_like(words)
    _xorshift(words.mul_(_signed(_MIX32[0], 32)), 15, scratch).add_(second)
    _xorshift(words.mul_(_signed(_MIX32[1], 32)), 16, scratch)
    _xorshift(words.mul_(_signed(_MIX32[2], 32)), 16, scratch)
    return words.view(torch.int16)[:, :features] >= limit


def _token_hash(value: int | torch.Tensor, row: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two int32 columns (N, 1) that depend on every bit of key, row and token."""
    x = row * _signed(_ROW, 64) + index * _signed(_TOKEN, 64)
    x.add_(value)
    scratch = torch.empty_like(x)
    for shift, factor in zip((30, 27), _MIX64, strict=True):
        _xorshift(x, shift, scratch).mul_(_signed(factor, 64))
    halves = _xorshift(x, 31, scratch).view(torch.int32).view(len(x), 2)
    return halves[:, :1], halves[:, 1:]


@lru_cache(maxsize=64)
def _feature_hash(words: int, device: torch.device) -> torch.Tensor:
    """A fixed int32 row (words): consecutive numbers spread over 32 bits, built once per width and device."""
    return torch.arange(1, words + 1, dtype=torch.int32, device=device).mul_(_signed(_MIX32[2], 32))


def _xorshift(x: torch.Tensor, shift: int, scratch: torch.Tensor) -> torch.Tensor:
    """`x ^= x >>> shift` in place; torch's shift copies the sign bit, the mask takes it off again."""
    bits = x.element_size() * 8
    torch.bitwise_right_shift(x, shift, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_((1 << (bits - shift)) - 1))


def _signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned constant: torch's integers are signed and wrap."""
    return value - (1 << bits) if value >= 1 << (bits - 1) else value
