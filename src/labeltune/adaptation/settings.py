"""The settings of an adaptation: which text, what is predicted in it, for how long and how fast."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from labeltune.data.settings import DataConfig
from labeltune.model.settings import LoraConfig, ModelConfig
from labeltune.settings import Settings, one_of
from labeltune.training.settings import DEVICES

OBJECTIVE_NAMES = ("clm", "mntp", "mlm")
OPTIMISER_NAMES = ("adamw", "muon")
SAVE_DTYPES = ("fp32", "bf16", "fp16")


class AdaptConfig(Settings):
    """One continued pretraining."""

    texts: tuple[str, ...] = ()
    """Text files (documents parted by an empty line), or data files with a text column; .xz, .zst and .gz too."""
    heldout: str | Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Text that no step trains on: a file, or a share of the documents (chosen by their content; 0 holds none out)."""
    objective: Annotated[str, one_of(OBJECTIVE_NAMES)] = "clm"
    """clm: the next token. mntp: hidden tokens from the place before, without the causal mask. mlm: encoders' own."""
    from_config: str | None = None
    """A config.json, or its folder: train a fresh model of this shape instead of `model.name`."""
    tokenizer: str | None = None
    """Folder of the tokenizer, with from_config [the folder of the config]."""
    context: Annotated[int, Field(ge=4)] | None = None
    """Longest row in tokens, special tokens included; longer documents are divided [min(the model's, 512)]."""
    epochs: Annotated[float, Field(gt=0)] = 1
    """Passes over the text."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Training tokens, up to one step more, instead of epochs."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW [hidden size H: 2e-5 · 4096 / H, adapter 2e-4 · (4096 / H)^½, fresh model 1 / 2H]."""
    matrix_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of Muon [2 · lr]."""
    optimiser: Annotated[str, one_of(OPTIMISER_NAMES)] | None = None
    """adamw, or muon for the blocks' matrices and adamw for the rest [muon with from_config, else adamw]."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Most tokens of an optimiser step."""
    micro_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of one forward pass [1,024 on CPU, 16,384 elsewhere]; one row is never split."""
    warmup: Annotated[float, Field(ge=0)] = 0.02
    """Share of the steps (below 1) or number of steps of linear warm-up."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Last share of the steps, over which the learning rate falls linearly to zero; 0 is none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of the blocks' matrices."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm of a step."""
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the tokens that mntp and mlm hide."""
    mask_token: str | None = None
    """What hides a token [the tokenizer's mask token, else `_`]."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of every random value."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between looks at the held-out text [a tenth of the steps, at most 500]."""
    eval_tokens: Annotated[int, Field(ge=1)] = 20_000
    """Most held-out tokens read on the way; the first and the last look read all."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints [at each look at the held-out text]."""
    save_dtype: Annotated[str, one_of(SAVE_DTYPES)] = "fp32"
    """Of the saved weights. In 16 bits, changes smaller than half a unit of a 16-bit weight are lost."""
    device: Annotated[str, one_of(DEVICES)] = "auto"
    """Where to compute."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; recorded, because another number changes rounding."""


class Adaptation(Settings):
    """All settings of `labeltune adapt`."""

    adapt: AdaptConfig = AdaptConfig()
    data: DataConfig = DataConfig()
    """How data files are read: text, tokens, columns, template, normal_form, bos, eos, on_bad_row."""
    model: ModelConfig = ModelConfig()
    """The model to adapt: name, revision, unmask, dtype, quantization, checkpointing, trust_remote_code."""
    lora: LoraConfig | None = None
    """An adapter, merged into the saved weights [none: all weights are trained]."""
