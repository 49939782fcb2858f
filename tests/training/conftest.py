"""A trial on a tiny backbone, built by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from labeltune.data.encoding import Encoder
from labeltune.data.settings import DataConfig
from labeltune.data.store import Store
from labeltune.keys import Key
from labeltune.labels import LabelSet
from labeltune.model import backbone as backbones
from labeltune.model import member as members
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.schema import Example
from labeltune.tasks import TASKS
from labeltune.training.settings import TrainConfig
from labeltune.training.trial import Trial

WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()
LABELS = LabelSet(("a", "b", "c"))


@pytest.fixture(scope="session")
def rows() -> list[Example]:
    """Forty texts of 1 to 18 words, labelled a, b or c by their length."""
    sizes = [1 + (7 * i) % 18 for i in range(40)]
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(size)) for i, size in enumerate(sizes)]
    return [Example(f"rows[{i}]", text, label="abc"[len(text) % 3]) for i, text in enumerate(texts)]


MakeTrial = Callable[..., Trial]


@pytest.fixture
def make_trial(tiny_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast, rows: Sequence[Example]) -> MakeTrial:
    """A function: settings -> a fresh trial on its own backbone (`trial.backbone`)."""

    def make(
        *,
        model: ModelConfig = ModelConfig(),
        lora: LoraConfig = LoraConfig(rank=4, dropout=0.0),
        head: HeadConfig = HeadConfig(),
        order: Sequence[int] | None = None,
        backbone: backbones.Backbone | None = None,
        evaluate: object = None,
        **train: object,
    ) -> Trial:
        config = TrainConfig(**{"lr": 1e-2, "epochs": 2, "batch_rows": 8, "threads": 1, **train})
        task = TASKS["classification"]
        model = model.model_copy(update={"name": str(tiny_folder)})
        backbone = backbone or backbones.load(model, device="cpu", checkpointing=model.checkpointing == "on")
        edge = model.pooling if model.pooling in ("first", "last") else "last" if model.pooling is None else "inside"
        encoder = Encoder(
            tiny_tokenizer,
            config=DataConfig(),
            max_tokens=256,
            targets="document",
            edge=edge,
            whole_special=model.pool_special,
            label_of=task.label_of(LABELS),
        )
        chosen = [rows[i] for i in order] if order is not None else list(rows)
        member = members.build(
            backbone,
            model,
            lora,
            head,
            task_unmask="none",
            task_pooling="last",
            task_bias=False,
            width=3,
            key=Key.of(1),
        )
        trial = Trial(
            name="t",
            config=config,
            member=member,
            parameters=dict(member.named_parameters()),
            rows=Store.build(chosen, encoder.encode_many),
            loss=task.loss(head, LABELS, None, member.head),
            evaluate=evaluate,
            select=("macro_f1", True),
            key=Key.of(2),
        )
        trial.backbone = backbone
        return trial

    return make
