"""The oracles: stock tokenizer calls on the whole text, and loops that say the alignment rule token by token."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast

from labeltune.data import units
from labeltune.data.encoding import Encoder, neighbours
from labeltune.data.settings import DataConfig
from labeltune.data.specials import special_tokens
from labeltune.errors import DataError, LabeltuneError, ModelError, SettingsError
from labeltune.labels import align, characters_of
from labeltune.schema import Encoded, Example, Span
from tests.conftest import SHARED

CORPUS = [
    "the thinking of the other thing, hello world's e-mail",
    "日本語のテキスト、東京タワー",
    "ภาษาไทย",
    "naïve café été",
]
SCRIPTS = [
    " the other thing's e-mail 3.14",
    "日本語テキスト、東京タワーがぎ",
    "ภาษาไทยดีนำ",
    "👩\u200d👧🏽🇯🇵\ufe0f",
    "e\u0301o\u0308\u3099",
    "  \r\n\t\u3000\u00a0▁Ġ",
    "ﷺ①ﬁÄİß\x00\u200b\ufeff",
]
TEXTS = st.lists(st.text(st.one_of(*map(st.sampled_from, SCRIPTS)), max_size=8), min_size=1, max_size=8).map("".join)


# Tokenizers, each of its own kind


def byte_level(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def sentencepiece(byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space mark put before the text, bytes for what the vocabulary lacks."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁therin日本語g",
        "▁t",
        "th",
        "▁th",
        "in",
        "n▁",
    ]
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("i", "n"), ("n", "▁")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: characters are lowered, stripped of accents, split, dropped; whole words are unknown."""
    pieces = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"theringo3.,-'日本",
        *("##" + letter for letter in "theringo3"),
        "the",
        "##ing",
    ]
    model = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def unigram() -> PreTrainedTokenizerFast:
    """As T5's: NFKC, so one character may become many and many one; a space mark before each word."""
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -3.0),
        *((letter, -4.0) for letter in "theringo日本"),
        ("▁the", -2.0),
    ]
    model = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="<unk>")


def real(make: Callable[[], PreTrainedTokenizerFast]) -> Callable[[], PreTrainedTokenizerFast]:
    def made() -> PreTrainedTokenizerFast:
        if not SHARED.is_dir():
            pytest.skip(f"needs real tokenizers in {SHARED}")
        return make()

    return made


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level, space before": lambda: byte_level(prefix_space=True),
    "sentencepiece": sentencepiece,
    "sentencepiece, unknown fused": lambda: sentencepiece(byte_fallback=False),
    "wordpiece": wordpiece,
    "unigram": unigram,
    "tinystories": real(lambda: PreTrainedTokenizerFast.from_pretrained(SHARED / "models" / "tinystories-656k")),
    "llama2": real(lambda: LlamaTokenizerFast.from_pretrained(SHARED / "models" / "llama2-tokenizer")),
}
LOSSLESS = ["byte-level", "byte-level, space before", "sentencepiece", "llama2"]  # each character is in some token

few = settings(max_examples=settings.default.max_examples // 3)  # for each of the tokenizers
kinds = pytest.mark.parametrize("kind", list(TOKENIZERS))


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[kind]()


def no_labels(example, spans) -> np.ndarray:
    return np.full(len(spans), -1, np.int64)


@cache
def encoder(kind: str, *, targets="units", max_tokens=4096, edge="inside", whole_special=False, **config) -> Encoder:
    return Encoder(
        tokenizer_of(kind),
        config=DataConfig(**{"max_windows": 10_000} | config),
        max_tokens=max_tokens,
        targets=targets,
        label_of=no_labels,
        edge=edge,
        whole_special=whole_special,
    )


def pieces(row: Encoded) -> list[list[int]]:
    return [row.tokens[a:b].tolist() for a, b in zip(row.piece_start, row.piece_end, strict=True)]


def encoded_or_empty(one: Encoder, text: str) -> Encoded | None:
    """None for a text that has no token and no special tokens, which is refused."""
    try:
        return one.encode(Example("x", text))
    except DataError as error:
        assert "no token" in str(error)
        return None


# Characters -> tokens


def expected_pieces(kind: str, text: str) -> list[list[int]]:
    """The rule of the file's head, unit by unit and token by token, on the stock call's offsets."""
    tokenizer = tokenizer_of(kind)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(zip(found["input_ids"], found["offset_mapping"], strict=True))
    spans = units.find(text)
    own: list[list[int]] = [[] for _ in spans]
    for place, (number, (start, end)) in enumerate(tokens):
        if tokenizer.convert_ids_to_tokens(number).strip("Ġ" if "byte-level" in kind else "▁") == "":
            continue
        solid = [c for c in range(start, end) if not text[c].isspace()]
        touched = [u for u, (a, b) in enumerate(spans) if solid and a <= solid[-1] and solid[0] < b]
        if touched:
            own[touched[0]].append(place)
    read = []
    for (_, end), places in zip(spans, own, strict=True):
        before = [place for place, (_, (start, _)) in enumerate(tokens) if start < end]
        places = places or before[-1:] or [0]
        read.append([number for number, _ in tokens[places[0] : places[-1] + 1]])
    return read


@kinds
@few
@given(TEXTS)
def test_each_unit_reads_the_tokens_that_the_rule_gives_it(kind, text):
    one = encoder(kind)
    row = encoded_or_empty(one, text)
    if row is None or len(row.tokens) == len(one.specials):
        return
    assert pieces(row) == expected_pieces(kind, text)
    assert row.target_span.tolist() == [list(span) for span in units.find(text)]


@kinds
@few
@given(TEXTS)
def test_one_window_is_the_stock_encoding(kind, text):
    row = encoded_or_empty(encoder(kind), text)
    assert (row.tokens.tolist() if row else []) == tokenizer_of(kind)(text)["input_ids"]


@kinds
@few
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_documents_read_the_stock_encoding_whatever_the_tokenizer_would_cut_and_pad(kind, texts):
    one, tokenizer = encoder(kind, targets="document"), tokenizer_of(kind)
    stock = [tokenizer(text)["input_ids"] for text in texts]
    whole = [(text, ids) for text, ids in zip(texts, stock, strict=True) if ids]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    rows = one.encode_many([Example("row", text) for text, _ in whole])
    assert [row.tokens.tolist() for row in rows] == [ids for _, ids in whole]


@kinds
@few
@given(TEXTS, st.integers(5, 40), st.integers(0, 20))
def test_windows_of_any_size_read_what_one_window_reads(kind, text, max_tokens, overlap):
    whole = encoded_or_empty(encoder(kind), text)
    divided = encoded_or_empty(encoder(kind, max_tokens=max_tokens, overlap=overlap), text)
    if whole is None or divided is None:
        return
    room = max_tokens - len(encoder(kind).specials)
    if max(map(len, pieces(whole)), default=0) <= room:
        assert pieces(divided) == pieces(whole) and divided.dropped_characters == 0
    else:
        assert len(divided.target_span) == len(whole.target_span) and divided.dropped_characters > 0
    assert divided.window_lengths.max() <= max_tokens and divided.window_lengths.sum() == len(divided.tokens)


@pytest.mark.parametrize("kind", LOSSLESS)
@few
@given(TEXTS, st.integers(5, 40), st.integers(0, 20), st.data())
def test_a_span_comes_back_from_units_and_tokens(kind, text, max_tokens, overlap, data):
    spans = units.find(text)
    if not spans:
        return
    first = data.draw(st.integers(0, len(spans) - 1))
    last = data.draw(st.integers(first, len(spans) - 1))
    gold = Span(spans[first][0], spans[last][1], "x")
    one = encoder(kind, max_tokens=max_tokens, overlap=overlap)
    row = one.encode(Example("x", text))
    targets = [tuple(span) for span in row.target_span.tolist()]
    assert characters_of(align([gold], targets).unit_spans, targets) == [gold]
    if row.dropped_characters == 0:
        covered = set().union(*characters_read(one, text, row)[first : last + 1])
        assert {c for c in range(gold.start, gold.end) if not text[c].isspace() and text[c] not in "▁Ġ"} <= covered


def characters_read(one: Encoder, text: str, row: Encoded) -> list[set[int]]:
    """Per unit, the characters of the tokens that it reads: the owned tokens are those of the stock call in order."""
    offsets = one.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    owned = [place for place, token in enumerate(one.show(Example("x", text))) if token.role in ("read", "owned")]
    characters = {place: set(range(*pair)) for place, pair in zip(owned, offsets, strict=True)}
    return [set().union(*(characters[place] for place in range(*pair))) for pair in ranges(row)]


@kinds
@few
@given(TEXTS, st.integers(5, 40), st.integers(0, 20))
def test_every_token_of_a_document_is_owned_once(kind, text, max_tokens, overlap):
    one = encoder(kind, targets="document", max_tokens=max_tokens, overlap=overlap)
    row = encoded_or_empty(one, text)
    stock = tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"]
    if row is None or not stock:
        return
    assert [number for piece in pieces(row) for number in piece] == stock
    assert row.piece_weight.tolist() == [len(piece) for piece in pieces(row)]
    assert row.piece_target.tolist() == [0] * len(row.piece_start)


@kinds
@few
@given(TEXTS, st.integers(5, 40))
def test_every_window_carries_the_special_tokens(kind, text, max_tokens):
    one = encoder(kind, max_tokens=max_tokens, overlap=3)
    row = encoded_or_empty(one, text)
    if row is None:
        return
    prefix, suffix = list(one.specials.prefix), list(one.specials.suffix)
    for window in np.split(row.tokens, np.cumsum(row.window_lengths)[:-1]):
        held = window.tolist()
        assert held[: len(prefix)] == prefix and held[len(held) - len(suffix) :] == suffix


@kinds
@few
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_many_rows_are_encoded_as_each_alone(kind, texts):
    one = encoder(kind, max_tokens=12, overlap=3)
    examples = [Example(f"x:{n}", text + "a") for n, text in enumerate(texts)]
    for together, example in zip(one.encode_many(examples), examples, strict=True):
        alone = one.encode(example)
        assert together.tokens.tolist() == alone.tokens.tolist() and pieces(together) == pieces(alone)


# What the pooling of a document reads


def document(edge: str, max_tokens: int, whole_special: bool = False) -> Encoded:
    one = encoder(
        "byte-level", targets="document", max_tokens=max_tokens, overlap=2, edge=edge, whole_special=whole_special
    )
    return one.encode(Example("x", "0123456789"))  # ten tokens, <s> before and </s> after


def ranges(row: Encoded) -> list[tuple[int, int]]:
    return list(zip(row.piece_start.tolist(), row.piece_end.tolist(), strict=True))


def test_a_documents_piece_reaches_the_edge_that_is_read():
    assert ranges(document("last", 12)) == [(1, 12)]
    assert ranges(document("first", 12)) == [(0, 11)]
    assert ranges(document("inside", 12)) == [(1, 11)]
    assert ranges(document("inside", 12, whole_special=True)) == [(0, 12)]


def test_a_document_in_windows_has_a_piece_in_each():
    # Content 0:6 and 4:10, the border at 5; each window is <s> and six tokens and </s>.
    assert document("last", 8).window_lengths.tolist() == [8, 8]
    assert ranges(document("last", 8)) == [(1, 8), (10, 16)]
    assert ranges(document("first", 8)) == [(0, 6), (8, 15)]
    assert ranges(document("inside", 8)) == [(1, 6), (10, 15)]
    assert ranges(document("inside", 8, whole_special=True)) == [(0, 6), (10, 16)]
    assert document("last", 8).piece_weight.tolist() == [5, 5]


# Special tokens


def test_special_tokens_are_those_that_the_tokenizer_adds_unless_told():
    tokenizer = tokenizer_of("byte-level")
    assert special_tokens(tokenizer, "auto", "auto") == special_tokens(tokenizer, True, True)
    assert special_tokens(tokenizer, False, "auto").prefix == ()
    assert special_tokens(tokenizer_of("sentencepiece"), "auto", "auto").suffix == ()
    assert special_tokens(tokenizer_of("sentencepiece"), "auto", True).suffix == (2,)
    assert special_tokens(tokenizer_of("wordpiece"), True, True).prefix == (1,)


def test_a_missing_eos_token_is_said_with_a_way_out():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(ModelError, match=r"data\.eos: the tokenizer has no eos token; set data\.eos to"):
        special_tokens(tokenizer, "auto", True)


# Long text


def test_a_text_that_does_not_fit_is_an_error_where_asked():
    with pytest.raises(DataError, match=r"t\.jsonl:3: the text has 14 tokens.* and 8 fit; raise data\.max_tokens"):
        encoder("byte-level", targets="document", max_tokens=8, long="error").encode(
            Example("t.jsonl:3", "0123456789ab")
        )


def test_too_many_windows_are_an_error_with_the_count():
    with pytest.raises(DataError, match=r"t\.jsonl:3: the text needs 5 windows of 8 tokens, and 4 are allowed"):
        encoder("byte-level", targets="document", max_tokens=8, overlap=0, max_windows=4).encode(
            Example("t.jsonl:3", "1." * 15)
        )


@kinds
@pytest.mark.parametrize("targets", ["units", "document"])
@few
@given(TEXTS, st.integers(5, 30))
def test_truncation_keeps_the_beginning_and_counts_the_rest(kind, targets, text, max_tokens):
    one = encoder(kind, targets=targets, max_tokens=max_tokens, long="truncate")
    row, whole = encoded_or_empty(one, text), encoded_or_empty(encoder(kind, targets=targets), text)
    if row is None or whole is None:
        return
    content = row.tokens.tolist()[len(one.specials.prefix) : len(row.tokens) - len(one.specials.suffix)]
    stock = tokenizer_of(kind)(text, add_special_tokens=False, return_offsets_mapping=True)
    if (whole.piece_end - whole.piece_start).max(initial=0) <= one.capacity or targets == "document":
        assert content == stock["input_ids"][: len(content)]
        cut = stock["offset_mapping"][len(content) :]
        assert row.dropped_characters == len(set().union(*(range(*pair) for pair in cut)))
    assert len(row.tokens) <= max_tokens and len(row.window_lengths) == 1
    words = encoded_or_empty(encoder(kind, targets="units"), text)
    assert row.dropped_units == int((words.piece_start >= len(one.specials.prefix) + len(content)).sum())
    assert row.target_span.tolist() == whole.target_span.tolist()[: len(row.target_span)]


@given(st.integers(0, 30), st.integers(12, 40))
def test_truncation_shortens_the_room_and_never_the_suffix(body, max_tokens):
    text = "3 " + "1" * body + " 77 8"
    example = Example("x", text, room=(2, 2 + body), units=tuple(units.find(text, "character")))
    one = encoder("byte-level", max_tokens=max_tokens, long="truncate")
    row = one.encode(example)
    kept = tokenizer_of("byte-level").decode(row.tokens[1:-1].tolist())
    left = min(body, max_tokens - 2 - (len(text) - body))
    assert kept == "3 " + "1" * left + " 77 8" or left < 0
    assert row.dropped_characters == row.dropped_units == body - left


def test_a_room_that_is_too_small_is_said():
    example = Example("t.jsonl:3", "1" * 20, room=(2, 5))
    with pytest.raises(DataError, match=r"t\.jsonl:3: .*even without the field that may be shortened; raise"):
        encoder("byte-level", targets="document", max_tokens=8, long="truncate").encode(example)


def test_a_unit_longer_than_a_window_keeps_its_first_tokens_counted():
    text = "a " + "9" * 20 + " b"
    row = encoder("byte-level", max_tokens=8, overlap=0).encode(Example("x", text))
    assert row.dropped_characters == 14 and row.dropped_units == 0
    assert row.piece_weight.tolist() == [1, 6, 1] and len(row.target_span) == 3


# Odd texts and tokenizers


def test_given_units_are_read_as_given():
    example = Example("x", "New York , x", units=((0, 8), (9, 10), (11, 12)))
    row = encoder("byte-level").encode(example)
    decoded = [tokenizer_of("byte-level").decode(piece) for piece in pieces(row)]
    assert decoded == ["New York", ",", "x"]


def test_units_that_share_a_token_all_read_it():
    row = encoder("sentencepiece, unknown fused").encode(Example("x", "東京都 t"))
    assert pieces(row) == [[0], [0], [0], pieces(row)[3]]
    assert ranges(row)[0] == ranges(row)[1] == ranges(row)[2]


def test_a_unit_whose_characters_were_dropped_reads_the_token_before_it():
    row = encoder("wordpiece").encode(Example("x", "the\u200bt", units=((0, 3), (3, 4), (4, 5))))
    assert ranges(row)[1] == (ranges(row)[0][1] - 1, ranges(row)[0][1])


def test_a_text_of_dropped_characters_reads_a_special_token_or_is_refused():
    example = Example("t.jsonl:3", "\u200b", units=((0, 1),))
    assert ranges(encoder("wordpiece").encode(example)) == [(0, 1)]
    assert ranges(encoder("wordpiece", targets="document", edge="last").encode(example)) == [(0, 2)]
    with pytest.raises(DataError, match=r"t\.jsonl:3: the tokenizer makes no token"):
        encoder("wordpiece", bos=False, eos=False).encode(example)


def test_a_lone_surrogate_is_refused_with_its_address():
    with pytest.raises(DataError, match=r"t\.jsonl:3: character 1 of the text is a lone surrogate"):
        encoder("byte-level").encode(Example("t.jsonl:3", "a\ud800b"))


@pytest.mark.parametrize("targets", ["units", "document"])
def test_a_very_long_text_passes(targets):
    text = "the other\x00 " * 20_000
    row = encoder("byte-level", targets=targets, max_tokens=512).encode(Example("x", text))
    assert len(row.window_lengths) > 100 and row.dropped_characters == 0


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="cannot say which characters"):
        Encoder(ByT5Tokenizer(), config=DataConfig(), max_tokens=9, targets="units", label_of=no_labels)


def test_a_tokenizer_whose_offsets_drift_is_refused():
    bpe = Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # no unknown token: drops, and moves what follows
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    with pytest.raises(ModelError, match="its offsets are wrong"):
        Encoder(tokenizer, config=DataConfig(), max_tokens=9, targets="units", label_of=no_labels)


def test_a_window_without_room_is_refused():
    with pytest.raises(SettingsError, match=r"data\.max_tokens: 4 tokens leave no room between 4 special"):
        tokenizer = byte_level()
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> <s> $A </s> </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        Encoder(tokenizer, config=DataConfig(), max_tokens=4, targets="document", label_of=no_labels)


# Labels, context, key, show


def test_labels_are_asked_for_the_targets_that_are_left():
    asked = []

    def label_of(example, spans):
        asked.append((example.id, list(spans)))
        return np.arange(len(spans))

    config = DataConfig(long="truncate")
    one = Encoder(tokenizer_of("byte-level"), config=config, max_tokens=5, targets="units", label_of=label_of)
    row = one.encode(Example("x", "1 2 3 4 5"))
    assert asked == [("x", [(0, 1), (2, 3)])] and row.labels.tolist() == [0, 1] and row.dropped_units == 3


@given(st.lists(st.text("123", min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 3))
def test_neighbouring_rows_surround_a_row_and_own_nothing(texts, context):
    examples = [Example(f"x:{n}", text) for n, text in enumerate(texts)]
    near = encoder("byte-level", max_tokens=14, context=context)
    alone = encoder("byte-level", max_tokens=14)
    stock = [tokenizer_of("byte-level")(text, add_special_tokens=False)["input_ids"] for text in texts]
    for place, row in enumerate(near.encode_many(examples)):
        single = alone.encode(examples[place])
        assert pieces(row) == pieces(single) and len(row.tokens) <= 14
        before = [number for other in stock[max(0, place - context) : place] for number in other]
        after = [number for other in stock[place + 1 : place + 1 + context] for number in other]
        lead = int(row.piece_start[0]) - 1
        tail = len(row.tokens) - 1 - int(row.piece_end[-1])
        assert row.tokens[1 : 1 + lead].tolist() == before[len(before) - lead :]
        assert row.tokens[len(row.tokens) - 1 - tail : -1].tolist() == after[:tail]
        assert lead + tail == min(len(before) + len(after), 12 - len(stock[place]))


def test_context_stays_in_its_group_and_with_tags():
    rows = [
        Example(f"x:{n}", text, fields={"doc": doc})
        for n, (text, doc) in enumerate([("1", "a"), ("2", "a"), ("3", "b")])
    ]
    lengths = [len(row.tokens) for row in encoder("byte-level", context=1, group="doc").encode_many(rows)]
    assert lengths == [4, 4, 3]
    with pytest.raises(SettingsError, match=r"data\.context: neighbouring rows are context for tagging only"):
        encoder("byte-level", targets="document", context=1)


# Repetition


def windows_of(row: Encoded) -> list[list[int]]:
    return [window.tolist() for window in np.split(row.tokens, np.cumsum(row.window_lengths)[:-1])]


@kinds
@few
@given(TEXTS, st.integers(12, 60), st.integers(0, 8), st.integers(1, 3))
def test_a_repeated_text_is_read_in_its_last_copy(kind, text, max_tokens, overlap, repeat):
    # The windows are those of a text written once, in as many tokens as a copy has.
    specials = len(encoder(kind).specials)
    copy = (max_tokens - specials) // (repeat + 1) + specials
    once = encoded_or_empty(encoder(kind, max_tokens=copy, overlap=overlap), text)
    again = encoded_or_empty(encoder(kind, max_tokens=max_tokens, overlap=overlap, repeat=repeat), text)
    if once is None or again is None:
        return
    assert pieces(again) == pieces(once) and again.piece_weight.tolist() == once.piece_weight.tolist()
    prefix, suffix = map(list, (encoder(kind).specials.prefix, encoder(kind).specials.suffix))
    for written, window in zip(windows_of(once), windows_of(again), strict=True):
        inner = written[len(prefix) : len(written) - len(suffix)]
        assert window == prefix + inner * (repeat + 1) + suffix and len(window) <= max_tokens
    ends = np.cumsum(again.window_lengths)[np.searchsorted(np.cumsum(again.window_lengths), again.piece_end)]
    lengths = again.window_lengths[np.searchsorted(np.cumsum(again.window_lengths), again.piece_end)]
    if len(once.tokens) > specials * len(once.window_lengths):
        last = ends - len(suffix) - (lengths - specials) // (repeat + 1)
        assert (again.piece_start >= last).all()


def test_without_repetition_the_token_ids_are_unchanged():
    example = Example("x", "the thing")
    plain, zero = (encoder("byte-level", **settings).encode(example) for settings in ({}, {"repeat": 0}))
    assert zero.tokens.tolist() == plain.tokens.tolist() == tokenizer_of("byte-level")("the thing")["input_ids"]


def test_show_calls_earlier_copies_context():
    shown = encoder("byte-level", repeat=1).show(Example("x", "ab"))
    assert [(token.text, token.role) for token in shown] == [
        ("<s>", "special"), ("a", "context"), ("b", "context"), ("a", "read"), ("b", "read"), ("</s>", "special"),
    ]  # fmt: skip


def test_special_tokens_cannot_be_pooled_with_a_repeated_text():
    with pytest.raises(SettingsError, match="pool_special"):
        encoder("byte-level", targets="document", whole_special=True, repeat=1)


@given(st.lists(st.integers(), max_size=9), st.integers(0, 4))
def test_neighbours_are_the_slices_around_a_row(rows, count):
    expected = [(rows[max(0, n - count) : n], row, rows[n + 1 : n + 1 + count]) for n, row in enumerate(rows)]
    assert list(neighbours(rows, count)) == expected


def test_the_key_changes_with_whatever_changes_the_encoding():
    keys = [
        encoder("byte-level").key("data"),
        encoder("byte-level").key("other data"),
        encoder("byte-level", max_tokens=9).key("data"),
        encoder("byte-level", overlap=3).key("data"),
        encoder("byte-level", eos=False).key("data"),
        encoder("byte-level", targets="document").key("data"),
        encoder("sentencepiece").key("data"),
    ]
    assert len(set(keys)) == len(keys)
    assert encoder("byte-level", train="here.jsonl").key("data") == keys[0]


@pytest.mark.parametrize(
    ("edge", "read"), [("first", ["0", "5"]), ("last", ["</s>", "</s>"]), ("inside", list("0123456789"))]
)
def test_show_marks_the_tokens_that_are_read(edge, read):
    shown = encoder("byte-level", targets="document", max_tokens=8, overlap=2, edge=edge).show(
        Example("x", "0123456789")
    )
    texts = {"first": ["<s>", "<s>"]}.get(edge, read)
    assert [token.text for token in shown if token.role == "read"] == texts


@kinds
@few
@given(TEXTS, st.integers(5, 40))
def test_show_tells_the_tokens_that_are_encoded_and_who_owns_them(kind, text, max_tokens):
    one = encoder(kind, targets="document", max_tokens=max_tokens, overlap=3)
    row = encoded_or_empty(one, text)
    if row is None:
        return
    shown = one.show(Example("x", text))
    assert [token.id for token in shown] == row.tokens.tolist()
    owned = [token.id for token in shown if token.role in ("read", "owned")]
    stock = tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"]
    assert owned == stock or not stock


@kinds
def test_all_errors_are_ours_on_odd_texts(kind):
    for text in ["", " ", "\u200b", "\x00", "\ud800", "▁", "\r\n", "\ufeff", "a" * 5000]:
        for targets in ("units", "document"):
            for long in ("window", "truncate", "error"):
                try:
                    encoder(kind, targets=targets, long=long, max_tokens=12, max_windows=64).encode(
                        Example("x:1", text)
                    )
                except LabeltuneError as error:
                    assert str(error).startswith("x:1: ")
