"""Train the mini backbone's tokenizer: byte-level BPE, so every string round-trips.

    python pretraining/make_tokenizer.py CORPUS.txt.xz --out FOLDER

Digits are split one by one and words carry their leading space, the convention of the Llama 3 and GPT families. One
special token (`<|endoftext|>`) stands before every document and between documents; `<|mask|>` is reserved for masked
objectives. Deterministic: the same corpus gives the same file.
"""

import argparse
import lzma
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 6144
CONTEXT = 512
END, MASK = "<|endoftext|>", "<|mask|>"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE_BYTES = 48_000_000  # the corpus is shuffled by document, so its head is a fair sample


def paragraphs(path: Path, limit: int) -> Iterator[str]:
    """The lines of an xz text file, up to about `limit` bytes of text."""
    seen = 0
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if seen >= limit:
                return
            seen += len(line.encode())
            yield line


def train(corpus: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` entries, wrapped for transformers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs(corpus, SAMPLE_BYTES), trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, end)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        mask_token=MASK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Read the command line, train, save."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("corpus", type=Path)
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()
    train(options.corpus).save_pretrained(options.out)


if __name__ == "__main__":
    main()
