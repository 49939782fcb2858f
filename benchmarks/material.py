"""Backbones and rows of the speed benchmarks: random Llamas of named sizes, texts as long as they are in real data."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from stock_trainer import read_rows
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

SIZES: dict[str, dict[str, int]] = {
    "15M": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "110M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
"""Llama shapes, embeddings of 32,000 tokens counted."""


def llama(size: Mapping[str, int], vocabulary: int) -> LlamaForCausalLM:
    """Random weights of one shape, the same in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, tie_word_embeddings=True, **size)
    return LlamaForCausalLM(config)


def backbone(size: str, tokenizer: Path, work: Path) -> Path:
    """A folder with the model and the Llama 2 tokenizer, built once."""
    folder = work / f"llama-{size}"
    if not folder.is_dir():
        partial = work / f"llama-{size}.partial"
        known = LlamaTokenizer.from_pretrained(tokenizer)
        llama(SIZES[size], len(known)).save_pretrained(partial)
        known.save_pretrained(partial)
        partial.rename(folder)
    return folder


@dataclass(frozen=True)
class Texts:
    """One kind of text. cap: most tokens of a row; batch_rows: rows of an optimiser step, as the recipe has them."""

    title: str
    task: str
    cap: int
    batch_rows: int
    rows: Callable[[Path], Iterator[tuple[str, str]]]


def _sst2(data: Path) -> Iterator[tuple[str, str]]:
    return ((row.text, row.label) for row in read_rows(str(data / "sst" / "stsa.binary.train")))


def _phrases(data: Path) -> Iterator[tuple[str, str]]:
    """Each sentence in two halves."""
    for text, label in _sst2(data):
        words = text.split(" ")
        for half in (words[: len(words) // 2], words[len(words) // 2 :]):
            if half:
                yield " ".join(half), label


def _ag_news(data: Path) -> Iterator[tuple[str, str]]:
    path = data / "ag_news" / "train_subset_derived.jsonl"
    return ((row.text, row.label) for row in read_rows(str(path)))


def _livedoor(data: Path) -> Iterator[tuple[str, str]]:
    """The first quarter of title and body: Llama 2 makes about four times as many tokens of Japanese as its own do."""
    for category in sorted(path for path in (data / "livedoor" / "text").iterdir() if path.is_dir()):
        for article in sorted(category.glob(f"{category.name}-*.txt"))[:200]:
            text = " ".join(article.read_text("utf-8").splitlines()[2:])
            yield text[: len(text) // 4], category.name


def _wnut17(data: Path) -> Iterator[tuple[str, str]]:
    for row in read_rows(str(data / "wnut17" / "wnut17train.conll")):
        yield "\n".join(f"{word}\t{tag}" for word, tag in zip(row.words, row.tags, strict=True)), ""


TEXTS: dict[str, Texts] = {
    "sst2": Texts("SST-2 sentences", "classification", 64, 8, _sst2),
    "phrases": Texts("short phrases (halves of them)", "classification", 64, 8, _phrases),
    "tagging": Texts("WNUT-17, tagging", "tagging", 64, 8, _wnut17),
    "ag_news": Texts("AG News", "classification", 64, 8, _ag_news),
    "livedoor": Texts("livedoor, a quarter of each article", "classification", 512, 32, _livedoor),
}
ROWS = 1000


def write_rows(kind: str, data: Path, work: Path, places: Sequence[int] | None = None) -> tuple[Path, Path]:
    """A seeded choice of 1,000 rows, or those at some places of it, and four short ones to evaluate on."""
    texts = TEXTS[kind]
    ending = "conll" if texts.task == "tagging" else "jsonl"
    part = ROWS if places is None else hashlib.sha256(str(list(places)).encode()).hexdigest()[:12]
    train, dev = (work / f"{kind}-{name}.{ending}" for name in (part, "dev"))
    if not (train.exists() and dev.exists()):
        rows = list(dict.fromkeys(texts.rows(data)))
        random.Random(0).shuffle(rows)
        short = sorted(rows[ROWS:], key=lambda row: len(row[0]))[:4]
        for path, chosen in ((train, [rows[place] for place in places or range(ROWS)]), (dev, short)):
            joined = "\n\n".join(text for text, _ in chosen) + "\n"
            lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in chosen)
            path.write_text(joined if texts.task == "tagging" else lines, "utf-8")
    return train, dev
