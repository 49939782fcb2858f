"""From files to rows: every token is predicted once, and what cannot be read is told with its address."""

import copy
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from labeltune.adaptation.corpus import Cut, open_corpus, windows_of
from labeltune.adaptation.documents import divided, open_texts, read_documents
from labeltune.data.settings import DataConfig
from labeltune.data.specials import Specials, special_tokens
from labeltune.errors import DataError, ModelError, RunError, SettingsError

DOCUMENTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60), max_size=12)


@pytest.fixture
def corpus_of(tmp_path: Path, tiny_tokenizer):
    """A function: a text file to its corpus, cut at 16 tokens."""

    def build(path: Path, *, heldout=0.0, context: int = 16, folder: str = "corpus", specials=None):
        specials = special_tokens(tiny_tokenizer, "auto", "auto") if specials is None else specials
        held = heldout if isinstance(heldout, float) else open_texts(str(heldout), DataConfig())
        cut = Cut(tiny_tokenizer, specials, context, len(tiny_tokenizer))
        return open_corpus([open_texts(str(path), DataConfig())], held, cut, tmp_path / folder)

    return build


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


# Documents


def test_documents_are_parted_by_empty_lines(tmp_path: Path):
    (tmp_path / "t.txt").write_bytes("\n\n a\r\nb\r\n \t\r\nc\n\n\n\nだ\n".encode())
    assert list(read_documents(tmp_path / "t.txt")) == [" a\nb", "c", "だ"]


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstandard.ZstdCompressor().compress)]
)
def test_compressed_text_is_the_same_text(suffix, pack, tmp_path: Path, text_file: Path):
    (tmp_path / f"c.txt.{suffix}").write_bytes(pack(text_file.read_bytes()))
    assert list(read_documents(tmp_path / f"c.txt.{suffix}")) == list(read_documents(text_file))


def test_a_row_of_data_is_a_document(tmp_path: Path):
    rows = [{"text": "one\n\ntwo", "label": "x"}, {"text": "three", "label": "y"}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.csv").write_text("title,body\nA,b\nC,d\n")
    assert list(open_texts(str(tmp_path / "r.jsonl"), DataConfig()).documents()) == ["one\n\ntwo", "three"]
    assert list(open_texts(str(tmp_path / "r.csv"), DataConfig(text="body")).documents()) == ["b", "d"]


@pytest.mark.parametrize("role", ["text", "tokens"])
def test_a_misspelt_column_is_no_other_column(role, tmp_path: Path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"text": "one", "bodies": "two"}) + "\n")
    with pytest.raises(DataError, match=rf"data.{role} = 'bodys' is no column; did you mean 'bodies'"):
        open_texts(str(tmp_path / "r.jsonl"), DataConfig(**{role: "bodys"}))


def test_a_folder_is_its_files_each_as_if_it_were_named(tmp_path: Path):
    folder = tmp_path / "f"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "b.txt").write_text("one\ntwo\n\nthree\n")
    (folder / "a.jsonl").write_text('{"text": "four", "label": "x"}\n')
    (folder / "sub" / "c.md").write_text("five\n")
    for hidden in (".DS_Store", "sub/.git/config"):
        (folder / hidden).write_bytes(b"\0")
    found = open_texts(str(folder), DataConfig())
    assert list(found.documents()) == ["four", "one\ntwo", "three", "five"]
    (folder / "b.txt").write_text("one\n")
    assert open_texts(str(folder), DataConfig()).key != found.key
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no file in this folder"):
        open_texts(str(tmp_path / "empty"), DataConfig())


def test_a_line_too_long_to_hold_is_read_in_parts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("labeltune.data.readers.lines.LONGEST", 16)
    monkeypatch.setattr("labeltune.adaptation.documents.LONGEST", 4)
    text = "the hen sang on the ring \n" + "だ" * 11
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    assert "".join(read_documents(tmp_path / "t.txt")) == text.replace("\n", "")
    (tmp_path / "t.txt").write_text(text + "\nx\0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"t.txt:3: holds a NUL"):
        list(read_documents(tmp_path / "t.txt"))


def test_how_rows_are_read_belongs_to_what_is_read(tmp_path: Path):
    (tmp_path / "r.csv").write_text("title,body\nA,b\n")
    ways = [{"text": "body"}, {"text": "title"}, {"template": "{title}"}, {"text": "body", "normal_form": "NFC"}]
    ways += [{"columns": ["a", "b"], "text": "b"}, {"columns": ["b", "a"], "text": "b"}]
    keys = [open_texts(str(tmp_path / "r.csv"), DataConfig(**way)).key for way in ways]
    assert len(set(keys)) == len(keys)
    assert open_texts(str(tmp_path / "r.csv"), DataConfig(text="body")).key == keys[0]


def test_given_tokens_are_joined(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": ["a", "b"], "tags": ["O", "O"]}) + "\n")
    assert list(open_texts(str(tmp_path / "t.jsonl"), DataConfig()).documents()) == ["a b"]


@given(st.text(max_size=60), st.integers(2, 10))
def test_a_long_document_is_divided_without_loss(text, longest):
    parts = list(divided(text, longest))
    assert "".join(parts) == text
    assert all(len(part) <= longest for part in parts)


# Rows


@given(st.integers(1, 60), st.integers(2, 12), st.data())
def test_windows_own_every_token_once_and_share_what_they_should(tokens, capacity, data):
    overlap = data.draw(st.integers(0, capacity - 1))
    windows = list(windows_of(tokens, capacity, overlap))
    assert [place for _, first, end in windows for place in range(first, end)] == list(range(tokens))
    assert all(end - start <= capacity for start, _, end in windows)
    assert all(first - start == overlap for start, first, _ in windows[1:])


def test_rows_hold_the_text_and_nothing_else(corpus_of, tmp_path: Path, texts, tiny_tokenizer):
    rows = corpus_of(write(tmp_path / "t.txt", texts)).train
    text = "".join(
        tiny_tokenizer.decode(row.tokens[row.first : row.last]) for row in map(rows.__getitem__, range(len(rows)))
    )
    assert text == "".join(texts)
    assert all(rows[n].tokens[0] == tiny_tokenizer.bos_token_id and len(rows[n].tokens) <= 16 for n in range(len(rows)))
    assert rows.lengths.tolist() == [len(rows[n].tokens) for n in range(len(rows))]
    assert rows.facts.bytes == sum(len(text.encode()) for text in texts)


def test_long_documents_are_divided_and_counted(corpus_of, tmp_path: Path):
    rows = corpus_of(write(tmp_path / "t.txt", ["x" * 15, "x" * 16, "x" * 31])).train
    assert rows.lengths.tolist() == [16, 16, 2, 16, 16, 2]
    assert (rows.facts.documents, rows.facts.divided) == (3, 2)


def test_an_end_token_stands_at_the_end_alone(corpus_of, tmp_path: Path):
    rows = corpus_of(write(tmp_path / "t.txt", ["x" * 20]), specials=Specials((0,), (1,))).train
    assert [rows[n].tokens.tolist().count(1) for n in range(len(rows))] == [0, 1]
    assert rows[1].tokens[-1] == 1 and rows[1].last == len(rows[1].tokens) - 1


def test_without_a_start_token_the_first_token_is_not_counted(corpus_of, tmp_path: Path):
    rows = corpus_of(write(tmp_path / "t.txt", ["é" + "x" * 30]), specials=Specials((), ())).train
    assert rows.facts.bytes == 30  # é, of two bytes and two tokens, covers the first token
    assert [rows[n].first for n in range(len(rows))] == [0, 1, 1]


def test_held_out_rows_have_half_a_context_before_what_they_predict(corpus_of, tmp_path: Path):
    corpus = corpus_of(write(tmp_path / "t.txt", ["a"]), heldout=write(tmp_path / "h.txt", ["x" * 40]))
    assert [(corpus.heldout[n].first, corpus.heldout[n].last) for n in range(len(corpus.heldout))] == [
        (1, 16), (8, 16), (8, 16), (8, 16), (8, 9)
    ]  # fmt: skip


@settings(max_examples=15)
@given(documents=DOCUMENTS)
def test_what_is_held_out_depends_on_the_text_alone(documents, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    parts = [" ".join(text.split()) for text in documents]
    split = {}
    for name, ordered in (("a", parts), ("b", [*reversed(parts), *parts])):
        cut = Cut(tiny_tokenizer, special_tokens(tiny_tokenizer, "auto", "auto"), 256, 300)
        path = write(folder / f"{name}.txt", [*ordered, "the hen", "sang on the ring"])
        corpus = open_corpus([open_texts(str(path), DataConfig())], 0.5, cut, folder / name)
        for part in (corpus.train, corpus.heldout):
            found = {tuple(part[n].tokens.tolist()) for n in range(len(part))}
            split.setdefault(part is corpus.heldout, []).append(found)
    assert split[True][0] == split[True][1] and split[False][0] == split[False][1]
    assert not split[True][0] & split[False][0]


def test_held_out_documents_are_left_out_of_the_training_text(corpus_of, tmp_path: Path, texts):
    held = write(tmp_path / "h.txt", [texts[3], "something else"])
    corpus = corpus_of(write(tmp_path / "t.txt", texts), heldout=held)
    assert corpus.train.facts.sealed == texts.count(texts[3])
    assert corpus.heldout.facts.documents == 2


@pytest.mark.parametrize("copy", [" the hen sang ", "the hen\nsang", "the  hen\tsang"])
def test_white_space_does_not_tell_a_copy_from_what_is_held_out(copy, corpus_of, tmp_path: Path):
    held = write(tmp_path / "h.txt", ["the hen sang"])
    corpus = corpus_of(write(tmp_path / "t.txt", [copy, "the ring"]), heldout=held)
    assert (corpus.train.facts.documents, corpus.train.facts.sealed) == (1, 1)


# What cannot be read


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no text in it"),
        (b" \n\n\t\n", "there is no text in it"),
        (bytes(range(256)), r"t.txt:1: holds a NUL|is not UTF-8"),
        (b"text\n\nmore \xff\xfe\n", r"t.txt:3: byte 6 \(0xff\) is not UTF-8"),
        (b"text\n\0\0\0\0\n", r"t.txt:2: holds a NUL character"),
        ("text".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_text_is_told(content, said, corpus_of, tmp_path: Path):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        corpus_of(tmp_path / "t.txt")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstandard.ZstdCompressor().compress)]
)
def test_a_truncated_file_is_told(suffix, pack, corpus_of, tmp_path: Path):
    whole = pack(bytes((7 * n * n) % 96 + 32 for n in range(50_000)))
    for end in (0, 4, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"t.txt.{suffix}").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"cut off|no text in it"):
            corpus_of(tmp_path / f"t.txt.{suffix}")


def test_a_missing_file_names_its_neighbour(corpus_of, text_file: Path):
    with pytest.raises(DataError, match=r"did you mean 'text.txt'"):
        corpus_of(text_file.with_name("texts.txt"))


def test_a_share_that_takes_everything_is_told(corpus_of, tmp_path: Path):
    with pytest.raises(DataError, match="all 1 documents fall into the held-out share"):
        corpus_of(write(tmp_path / "t.txt", ["one document"]), heldout=0.999999)


def test_text_that_is_held_out_whole_is_told(corpus_of, tmp_path: Path):
    path = write(tmp_path / "t.txt", ["one document"])
    with pytest.raises(DataError, match="every document is held out"):
        corpus_of(path, heldout=path)


def test_a_context_without_room_is_told(corpus_of, text_file: Path):
    with pytest.raises(SettingsError, match=r"adapt.context: 4 tokens leave no room"):
        corpus_of(text_file, context=4, specials=Specials((0, 0), (1,)))


def test_a_token_beyond_the_model_is_told(tmp_path: Path, text_file: Path, tiny_tokenizer):
    cut = Cut(tiny_tokenizer, special_tokens(tiny_tokenizer, "auto", "auto"), 16, 20)
    with pytest.raises(ModelError, match="the model has 20 entries"):
        open_corpus([open_texts(str(text_file), DataConfig())], 0.0, cut, tmp_path / "corpus")


def test_a_special_token_beyond_the_model_is_told_before_anything_is_read(corpus_of, tmp_path: Path, tiny_tokenizer):
    with pytest.raises(ModelError, match=rf"gives the token {len(tiny_tokenizer)}, and the model has"):
        corpus_of(write(tmp_path / "t.txt", ["the hen"]), specials=Specials((), (len(tiny_tokenizer),)))


def test_token_ids_have_the_width_of_the_models_vocabulary(tmp_path: Path, text_file: Path, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    facts["model"]["vocab"]["t"] = 70_000
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(facts))
    texts = [open_texts(str(text_file), DataConfig())]
    for vocabulary in (70_000, 300):
        with pytest.raises(ModelError, match="gives the token 70000"):
            open_corpus(texts, 0.0, Cut(tokenizer, Specials((), ()), 16, vocabulary), tmp_path / "none")
    rows = open_corpus(texts, 0.0, Cut(tokenizer, Specials((), ()), 16, 70_001), tmp_path / "corpus").train
    assert max(rows[n].tokens.max() for n in range(len(rows))) == 70_000


def test_other_text_in_the_same_folder_is_told(corpus_of, tmp_path: Path, texts):
    corpus_of(write(tmp_path / "t.txt", texts))
    assert len(corpus_of(tmp_path / "t.txt").train)
    write(tmp_path / "t.txt", texts[1:])
    with pytest.raises(RunError, match="not those that this training began with"):
        corpus_of(tmp_path / "t.txt")
