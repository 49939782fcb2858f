"""Find what a tag sits on: Unicode words, or single characters where the script writes no spaces.

Word boundaries are those of Unicode annex 29, characters its grapheme clusters (an accent stays on its letter, a family
of emoji stays together). The `regex` module has both compiled, at 1 to 7 million characters a second; `uniseg`, the
alternative, walks the text in Python, about a hundred times slower. The standard `re` has neither.
"""

from collections.abc import Callable

import regex

# Annex 29 gives up on these (it asks for a dictionary), or makes one word of a whole phrase in Katakana. The last two
# are the marks of a long vowel, shared by Hiragana and Katakana.
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\uff70"

_SOLID = r"[^\s\x1c-\x1f]"  # what `str.isspace` denies
_FLAGS = regex.V1 | regex.DOTALL
_SPACELESS_CHARACTER = regex.compile(rf"[{_SPACELESS}]", _FLAGS)
_CHARACTER = regex.compile(rf"(?={_SOLID})\X", _FLAGS)
_PART = regex.compile(rf"(?:{_SOLID}|(?<={_SOLID})\u202f(?={_SOLID}))+", _FLAGS)
_WORD = regex.compile(rf"(?w){_SOLID}.*?\b", _FLAGS)
_WORD_OR_SPACELESS = regex.compile(
    rf"(?w)(?=[{_SPACELESS}])\X|{_SOLID}(?:(?![{_SPACELESS}]).)*?(?:\b|(?=[{_SPACELESS}]))", _FLAGS
)


def find(text: str, unit: str = "auto") -> list[tuple[int, int]]:
    """The units of `text` as character ranges, sorted. Each character but white space lies in exactly one.

    White space is in none, but for a narrow no-break space inside a number, which annex 29 makes part of it.
    unit: a name of `FINDERS`, as `data.unit`.
    """
    found = (match.span() for match in FINDERS[unit](text).finditer(text))
    return [part for a, b in found for part in _solid(text, a, b)]


def _solid(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A unit in parts without white space, which it may end in; after odd marks annex 29 joins what a space parts."""
    if not any(character.isspace() for character in text[start:end]):
        return [(start, end)]
    return [(start + part.start(), start + part.end()) for part in _PART.finditer(text[start:end])]


def _auto(text: str) -> regex.Pattern[str]:
    return _WORD_OR_SPACELESS if _SPACELESS_CHARACTER.search(text) else _WORD


FINDERS: dict[str, Callable[[str], regex.Pattern[str]]] = {
    "auto": _auto,
    "word": lambda text: _WORD,
    "character": lambda text: _CHARACTER,
}
