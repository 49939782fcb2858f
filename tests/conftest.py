"""What every test stands on: no network, one thread, real data where it lies, and one tiny backbone made here."""

import copy
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, here and in the processes that tests start
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts tests in the background

settings.register_profile(
    "laws", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("fuzz", settings.get_profile("laws"), derandomize=False, max_examples=2_000)
settings.load_profile("laws")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, models and corpora beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, a BOS that is added, an EOS that is not, and no pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("Ġ", "the"), ("Ġ", "a"), ("o", "n"), ("in", "g")]
    pieces = ["<s>", "</s>", *letters, *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama (4 layers of 32, 4 heads over 2 keys) with `tiny_tokenizer`, as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


# Whole trainings on the tiny backbone

WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()
MOODS = {"calm": "hen", "loud": "ring", "odd": "zebra"}
QUICK = {"train.lr": 1e-2, "train.epochs": 1, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}
"""Settings of a training that takes half a second."""


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_POSITIONS = {"max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1}
ENCODERS = {
    "bert": transformers.BertConfig(**_SIZES, max_position_embeddings=128),
    "roberta": transformers.RobertaConfig(**_SIZES, **_POSITIONS),
    "modernbert": transformers.ModernBertConfig(
        **_SIZES, max_position_embeddings=128, local_attention=16, global_attn_every_n_layers=2, pad_token_id=1
    ),
    "luke": transformers.LukeConfig(**_SIZES, **_POSITIONS, entity_vocab_size=4, entity_emb_size=8),
}


@pytest.fixture(scope="session")
def tiny_encoder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Path]:
    """A function: a family of ENCODERS to a random encoder with its pooler, as a folder."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("encoder") / family
        config = copy.deepcopy(ENCODERS[family])
        config.vocab_size, config.bos_token_id, config.cls_token_id, config.eos_token_id = len(tiny_tokenizer), 0, 0, 1
        with torch.random.fork_rng():
            torch.manual_seed(1)
            transformers.AutoModel.from_config(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


def moods(rows: int, start: int = 0) -> list[dict[str, object]]:
    """Texts with one of three labels, which a word in the text tells."""
    found = []
    for i in range(start, start + rows):
        words = [WORDS[(i * 5 + j * (1 + i % 3)) % len(WORDS)] for j in range(2 + i % 7)]
        label = sorted(MOODS)[i % 3]
        words.insert(i % (len(words) + 1), MOODS[label])
        found.append({"text": f"{' '.join(words)} {i}", "label": label})
    return found


def names(rows: int, start: int = 0) -> list[dict[str, object]]:
    """Tokens with tags: Bob is a person, Anna Inn a place."""
    found = []
    for i in range(start, start + rows):
        words = [WORDS[(i * 7 + j) % len(WORDS)] for j in range(1 + i % 6)]
        name, tags = [(["Bob"], ["B-PER"]), (["Anna", "Inn"], ["B-LOC", "I-LOC"])][i % 2]
        at = i % (len(words) + 1)
        found.append(
            {
                "tokens": words[:at] + name + words[at:] + [str(i)],
                "tags": ["O"] * at + tags + ["O"] * (len(words) - at + 1),
            }
        )
    return found


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `moods` and `names`, each as train, dev and test: `moods-train.jsonl`, …"""
    folder = tmp_path_factory.mktemp("small")
    for make in (moods, names):
        for split, rows, start in (("train", 24, 0), ("dev", 8, 24), ("test", 8, 32)):
            write_jsonl(folder / f"{make.__name__}-{split}.jsonl", make(rows, start))
    return folder


@pytest.fixture(scope="session")
def finished(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `moods`. Tests that change it copy it first."""
    from labeltune import train

    out = tmp_path_factory.mktemp("runs") / "moods"
    data, dev, test = (small / f"moods-{split}.jsonl" for split in ("train", "dev", "test"))
    train(data, dev=dev, test=test, model=str(tiny_folder), out=out, settings=QUICK | {"train.epochs": 3})
    return out


@pytest.fixture(scope="session")
def tagger(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `names`. Tests that change it copy it first."""
    from labeltune import train

    out = tmp_path_factory.mktemp("runs") / "names"
    data, dev = small / "names-train.jsonl", small / "names-dev.jsonl"
    train(data, dev=dev, model=str(tiny_folder), out=out, settings=QUICK | {"train.epochs": 3})
    return out


@dataclass(frozen=True)
class Typed:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


Type = Callable[..., Typed]


@pytest.fixture
def typed() -> Type:
    """A function: the words of a command line -> what came of it. An exception that reaches the user fails the test."""

    def run(*words: object, text: str | bytes | None = None) -> Typed:
        from labeltune.cli import app

        result = CliRunner().invoke(app, list(map(str, words)), input=text)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Typed(result.exit_code, result.stdout, result.stderr)

    return run
