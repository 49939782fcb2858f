"""Long text: what windows decide is what stock transformers decides, run window by window and stitched by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear
from transformers import AutoModel

from labeltune.data import windows
from labeltune.data.batches import pack
from labeltune.data.encoding import Encoder
from labeltune.data.settings import DataConfig
from labeltune.keys import Key
from labeltune.labels import LabelSet
from labeltune.model import backbone as backbones
from labeltune.model import member as members
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.schema import Example
from labeltune.tasks import TASKS

LABELS = LabelSet(("a", "b", "c"))
FAR = 10**9

words = st.lists(st.sampled_from("the thin hen rings on a ring in another thing".split()), min_size=1, max_size=40)
limits = st.integers(10, 48)
overlaps = st.integers(0, 24)


@pytest.fixture(scope="module")
def engine(tiny_folder):
    """A function: task and pooling -> (logits of a text in windows by labeltune, hidden states -> logits)."""
    backbone = backbones.load(ModelConfig(name=str(tiny_folder)), device="cpu")

    def engine(task, tokenizer, pooling, **config):
        task = TASKS[task]
        choice = {"task_unmask": "none", "task_pooling": pooling, "task_bias": True}
        member = members.build(
            backbone,
            ModelConfig(pooling=pooling),
            LoraConfig(kind="none"),
            HeadConfig(),
            width=3,
            key=Key.of(3),
            **choice,
        )
        model = members.LabelModel(backbone, [member])
        limit = config.pop("max_tokens")
        edge = pooling if pooling in ("first", "last") else "inside"
        encoder = Encoder(
            tokenizer,
            config=DataConfig(**config),
            max_tokens=limit,
            targets=task.targets,
            edge=edge,
            label_of=task.label_of(LABELS),
        )

        def logits(text):
            encoded = encoder.encode(Example("row", text))
            with torch.no_grad():
                return model(pack([[(0, encoded)]]))[0]

        return logits, lambda vectors: linear(vectors, member.head.weight, member.head.bias)

    return engine


@pytest.fixture(scope="module")
def stock(tiny_folder):
    return AutoModel.from_pretrained(tiny_folder, attn_implementation="eager").eval()


def states(stock, ids):
    """The stock model's hidden states (n, H) of `ids` behind a BOS."""
    with torch.no_grad():
        return stock(torch.tensor([[0, *ids]])).last_hidden_state[0, 1:]


def context(start, end, window, count):
    """The smaller of the contexts that tokens start:end have in a window; an end of the text is no lack of it."""
    left = FAR if window[0] == 0 else start - window[0]
    right = FAR if window[1] == count else window[1] - end
    return min(left, right)


def ranges_of(text, tokenizer):
    """Token ids, and the token range of each word; a token that is white space alone is in none."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    held = [text[start:end].strip() != "" for start, end in found["offset_mapping"]]
    word = np.where(held, [text[:end].rstrip().count(" ") for _, end in found["offset_mapping"]], -1)
    places = [np.flatnonzero(word == number) for number in range(len(text.split()))]
    return found["input_ids"], [(int(place[0]), int(place[-1]) + 1) for place in places]


def windows_of(units, count, limit, overlap):
    """The ranges of the windows; that they share what they should is a law of their own."""
    starts, ends = np.array(units, dtype=np.int64).reshape(-1, 2).T
    plan = windows.plan(windows.Cuts.around(starts, ends, count), capacity=limit - 1, overlap=overlap)
    return list(zip(plan.starts.tolist(), plan.ends.tolist(), strict=True))


@settings(max_examples=25)
@given(words, limits, overlaps)
def test_each_word_is_decided_in_the_window_that_gives_it_the_most_context(
    engine, stock, tiny_tokenizer, some, limit, overlap
):
    logits, head = engine("tagging", tiny_tokenizer, "first", max_tokens=limit, overlap=overlap)
    text = " ".join(some)
    ids, units = ranges_of(text, tiny_tokenizer)
    plan = windows_of(units, len(ids), limit, overlap)
    hidden = [states(stock, ids[a:b]) for a, b in plan]
    for (first, last), found in zip(units, logits(text), strict=True):
        inside = [
            (context(first, last, window, len(ids)), w)
            for w, window in enumerate(plan)
            if window[0] <= first and last <= window[1]
        ]
        best = [w for most, w in inside if most == max(inside)[0]]
        expected = [head(hidden[w][first - plan[w][0]][None])[0] for w in best]
        assert any(torch.allclose(found, one, atol=2e-5) for one in expected)


@settings(max_examples=25)
@given(words, limits, overlaps, st.sampled_from(["mean", "max", "last"]))
def test_a_document_joins_its_windows_by_the_tokens_they_own(
    engine, stock, tiny_tokenizer, some, limit, overlap, pooling
):
    logits, head = engine("classification", tiny_tokenizer, pooling, max_tokens=limit, overlap=overlap)
    text = " ".join(some)
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    plan = windows_of([], len(ids), limit, overlap)
    owner = [max(range(len(plan)), key=lambda w: (_inside(n, plan[w], len(ids)), -w)) for n in range(len(ids))]
    owned = [[n - a for n in range(a, b) if owner[n] == w] for w, (a, b) in enumerate(plan)]
    hidden = [states(stock, ids[a:b]) for a, b in plan]
    if pooling == "last":
        vector = sum(len(own) * h[-1] for own, h in zip(owned, hidden, strict=True)) / len(ids)
    else:
        read = torch.cat([h[own] for own, h in zip(owned, hidden, strict=True)])
        vector = read.mean(0) if pooling == "mean" else read.max(0).values
    assert torch.allclose(logits(text)[0], head(vector[None])[0], atol=2e-5)


def _inside(token, window, count):
    return context(token, token + 1, window, count) if window[0] <= token < window[1] else -1


@pytest.mark.parametrize(("task", "pooling"), [("tagging", "first"), ("classification", "last")])
def test_a_text_in_one_window_is_the_text_without_windows(engine, stock, tiny_tokenizer, task, pooling):
    text = "the thin hen rings on another thing"
    ids, units = ranges_of(text, tiny_tokenizer)
    logits, head = engine(task, tiny_tokenizer, pooling, max_tokens=len(ids) + 1)
    hidden = states(stock, ids)
    read = hidden[[first for first, _ in units]] if task == "tagging" else hidden[-1:]
    assert torch.allclose(logits(text), head(read), atol=2e-5)
