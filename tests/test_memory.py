"""A file that is far larger than memory should be: rows stream by, encoded rows are mapped, peaks stay small."""

import json
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()
SIZE = 300_000_000
LIMIT = 2**30

MEASURE = """
import json, resource, sys
import labeltune
model, small, big, out = sys.argv[1:]
peaks = []
for name, path in (("small", small), ("big", big)):
    run = labeltune.train(
        path, dev=small if name == "small" else 0.001, model=model, out=f"{out}/{name}",
        settings={"train.steps": 3, "train.threads": 1, "lora.kind": "none", "data.text": "text"},
    )
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(json.dumps({"peaks": peaks, "rows": json.load(open(f"{out}/big/splits.json"))["train"]["rows"]}))
"""


@pytest.fixture(scope="module")
def word_model(tmp_path_factory):
    """A tiny random Llama whose tokens are words: a fast tokenizer for much text."""
    folder = tmp_path_factory.mktemp("words")
    names = ["<unk>", *sorted(set(WORDS))]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(names), **size)).save_pretrained(folder)
    return folder


def write(path, size):
    """Rows of half read text and half columns that nobody reads, most of 1 KB, one in a hundred of 50 KB."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=6_000 if n % 100 == 50 else 120)) for n in range(200)]
    written, number = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            text = texts[number % len(texts)]
            row = {"text": f"{text} {number}", "label": WORDS[number % 3], "raw": text[::-1]}
            written += file.write(json.dumps(row) + "\n")
            number += 1
    return number


@pytest.mark.slow
def test_a_file_of_300_megabytes_takes_less_than_a_gibibyte_beyond_a_small_one(word_model, tmp_path):
    small, big = tmp_path / "small.jsonl", tmp_path / "big.jsonl"
    write(small, 50_000)
    rows = write(big, SIZE)
    command = [sys.executable, "-c", MEASURE, str(word_model), str(small), str(big), str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert rows * 0.998 <= found["rows"] < rows
    assert found["peaks"][1] - found["peaks"][0] < LIMIT
