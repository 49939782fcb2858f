"""The `model`, `lora` and `head` sections: the backbone, who may see whom, what is read, what is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from labeltune.settings import Settings, one_of

MINI = "mini"
"""The name of the bundled backbone."""

POOL_ON = ("hidden", "logits")
DTYPES = ("auto", "fp32", "bf16", "fp16")
QUANTIZATIONS = ("none", "int8", "nf4")
CHECKPOINTING = ("auto", "on", "off")
RECORDING = ("auto", "off")
MATMUL = ("auto", "stock", "onednn")
POOLING_NAMES = ("first", "last", "mean", "max", "attention")
HEAD_KINDS = ("linear", "stock")
LORA_KINDS = ("lora", "rslora", "dora", "none", "full")


class ModelConfig(Settings):
    """The backbone and how its latent representations are read."""

    name: str | None = None
    """A hub id or a local folder in Hugging Face format; `mini` is the bundled backbone."""
    revision: str | None = None
    """The hub revision (branch, tag or commit)."""
    weights_sha256: str | None = None
    """Hash of the backbone's weight files; other weights are refused [recorded by the training]."""
    unmask: str | None = None
    """Layers without causal mask: `none`, `all`, `first:8`, `8:16`, `0%:50%`, unions [none; tagging, encoders: all]."""
    pooling: Annotated[str, one_of(POOLING_NAMES)] | None = None
    """How a piece's tokens become one vector [last; tagging, encoders: first]."""
    pool_on: Annotated[str, one_of(POOL_ON)] = "hidden"
    """Pool hidden states, or the logits of every token."""
    pool_special: bool = False
    """Mean, max and attention pooling read BOS and EOS too."""
    depth: Annotated[int, Field(ge=1)] | None = None
    """Blocks used; the final norm is applied to the last of them [all]."""
    dtype: Annotated[str, one_of(DTYPES)] = "auto"
    """The frozen backbone's dtype; auto: the checkpoint's on CUDA, fp32 elsewhere. Head and adapters are fp32."""
    quantization: Annotated[str, one_of(QUANTIZATIONS)] = "none"
    """4- or 8-bit storage of the frozen backbone, through bitsandbytes (extra `quantised`)."""
    checkpointing: Annotated[str, one_of(CHECKPOINTING)] = "auto"
    """Recompute activations in the backward pass, which takes time and saves memory: on, off; auto is off."""
    recording: Annotated[str, one_of(RECORDING)] = "auto"
    """Record small training passes as CUDA graphs and replay them: auto (16-bit backbones, no checkpointing), off."""
    matmul: Annotated[str, one_of(MATMUL)] = "auto"
    """Who multiplies fp32 matrices on a CPU: stock (torch's choice), onednn; auto: onednn on AVX-512 not by Intel."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint."""


class LoraConfig(Settings):
    """The adapter on the frozen backbone."""

    rank: Annotated[int, Field(ge=1)] = 32
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / rank (rslora: alpha / sqrt(rank)) [= rank]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the adapter's input features dropped, addressed by row, token, layer and step."""
    targets: tuple[str, ...] | None = None
    """Names of the adapted linear layers [attention q k v o, or the family's fused equivalents]."""
    layers: str | None = None
    """Adapted blocks, in the notation of `model.unmask` [all]."""
    kind: Annotated[str, one_of(LORA_KINDS)] = "lora"
    """lora, rslora, dora; none trains the head only, full the whole backbone."""


class HeadConfig(Settings):
    """The label head and its loss."""

    kind: Annotated[str, one_of(HEAD_KINDS)] = "linear"
    """linear: one layer from a pooled vector to the labels; stock: the family's own head and bias. In fp32."""
    bias: bool | None = None
    """A bias in the head [false for documents, true for tags]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the head's input features dropped."""
    loss: Annotated[str, one_of(("focal",))] | None = None
    """The loss, where not the task's own."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of the focal loss; 0 is cross-entropy."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """`balanced`, or a table label -> weight."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target probability spread over all labels."""
    mean: float | None = None
    """Added to the head's number (regression) [the training numbers' mean, recorded]."""
    std: Annotated[float, Field(gt=0)] | None = None
    """What the head's number is counted in (regression) [the training numbers' standard deviation, recorded]."""
    crf: bool = False
    """A linear-chain CRF over a document's tags (tagging)."""
