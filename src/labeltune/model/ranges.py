"""Layers in words: `none`, `all`, `first:8`, `last:8`, `8:16`, `25%:50%`, and unions of these."""

from __future__ import annotations

import re

from labeltune.errors import SettingsError


def parse_layers(text: str, layers: int, *, at: str) -> tuple[bool, ...]:
    """`none`, `all`, `first:8`, `last:8`, `8:16` (half-open, from 0) and comma-joined unions, against a real depth.

    Shares of the depth, `25%:50%`, begin and end at the nearest layer (a half rounds up), so that neighbours join.
    """
    if text in ("none", "all"):
        return (text == "all",) * layers
    chosen = [False] * layers
    for part in text.split(","):
        start, end = _layer_range(part.strip(), text, layers, at)
        chosen[start:end] = [True] * (end - start)
    return tuple(chosen)


def _layer_range(part: str, text: str, layers: int, at: str) -> tuple[int, int]:
    shares = re.fullmatch(r"(\d{1,3})%:(\d{1,3})%", part, re.ASCII)
    match = re.fullmatch(r"(first|last|\d{1,6}):(\d{1,6})", part, re.ASCII)
    if shares is not None:
        low, high = int(shares[1]), int(shares[2])
        start, end = ((2 * share * layers + 100) // 200 for share in (low, high))
        if not low < high <= 100:
            raise SettingsError(f"{part!r} is no share of the model", at=at, hint="write 0%:50%, for example")
        if start == end:
            raise SettingsError(f"{part!r} holds none of {layers} layers", at=at, hint="write a larger share")
        return start, end
    if match is None:
        hint = "write none, all, first:8, last:8, 8:16, 25%:50%, or a union such as 0:8,16:24"
        raise SettingsError(f"{text[:80]!r} names no layers", at=at, hint=hint)
    word, number = match[1], int(match[2])
    start, end = {"first": (0, number), "last": (layers - number, layers)}.get(word) or (int(word), number)
    if not 0 <= start < end <= layers:
        raise SettingsError(f"{part!r} is outside the model", at=at, hint=f"it has {layers} layers, 0 to {layers - 1}")
    return start, end
