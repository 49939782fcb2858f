import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeltune.data.settings import UNITS
from labeltune.data.units import FINDERS, find

ALPHABETS = [
    "abc'.,-_3 ",
    "日本語テキストーひらがなｶ。",
    "ภาษาไทนำ",
    "👩👧🏽🇯🇵\u200d\ufe0f",
    "e\u0301\u0308\u3099か",
    "\r\n\t \x1c\x85\u202f\u2028\u3000\u00a0",
]
TEXTS = st.one_of(st.text(st.sampled_from("".join(ALPHABETS))), st.text())


def words(text: str, unit: str = "auto") -> list[str]:
    return [text[start:end] for start, end in find(text, unit)]


@given(TEXTS, st.sampled_from(UNITS))
def test_each_solid_character_lies_in_exactly_one_unit(text, unit):
    spans = find(text, unit)
    inside = [place for start, end in spans for place in range(start, end)]
    assert inside == sorted(set(inside))
    assert {place for place, c in enumerate(text) if not c.isspace()} <= set(inside)


@given(TEXTS, st.sampled_from(UNITS))
def test_no_unit_begins_or_ends_in_white_space_or_is_empty(text, unit):
    assert all(piece and piece == piece.strip() for piece in words(text, unit))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I can't pay $3.50.", ["I", "can't", "pay", "$", "3.50", "."]),
        ("e-mail a@b.com", ["e", "-", "mail", "a", "@", "b.com"]),
        (" two\r\nlines ", ["two", "lines"]),
        ("東京タワーへ", ["東", "京", "タ", "ワ", "ー", "へ"]),
        ("iPhoneを買う", ["iPhone", "を", "買", "う"]),
        ("か\u3099x", ["か\u3099", "x"]),
        ("นำ x", ["นำ", "x"]),
        ("한국어 띄어쓰기", ["한국어", "띄어쓰기"]),
        ("cafe\u0301 \u0301x", ["cafe\u0301", "\u0301", "x"]),
        ("👩‍👩‍👧 🇯🇵🇺🇸 👍🏽", ["👩‍👩‍👧", "🇯🇵", "🇺🇸", "👍🏽"]),
        ("10\u202f000 mots\u202f!", ["10\u202f000", "mots", "!"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_units_are_words_or_characters_of_scripts_without_spaces(text, expected):
    assert words(text) == expected


def test_words_keep_katakana_together_and_characters_split_all():
    assert words("テキスト ab", "word") == ["テキスト", "ab"]
    assert words("ab e\u0301", "character") == ["a", "b", "e\u0301"]


@given(st.text("abc日本テ xÄé"))
def test_a_text_without_spaceless_scripts_has_the_same_words_either_way(text):
    plain = "".join(c for c in text if c not in "日本テ")
    assert find(plain, "auto") == find(plain, "word")


def test_every_name_of_the_setting_has_a_finder():
    assert set(FINDERS) == set(UNITS)
