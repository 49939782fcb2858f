"""What each family of models does in its own way: one table, and the length-equal path for whoever is not in it.

A family is *packed* when its attention calls the function that transformers' `AttentionInterface` hands it in every
layer; then documents of all lengths share one stream and any layer can be unmasked. The table only names candidates:
`backbone` counts the calls on the loaded model. All others run in rows of exactly equal length, without padding and
without mask, causal as their authors made them; so does every family that nobody has tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """One family's quirks.

    packed: the family takes one packed stream, and any of its layers can be unmasked.
    encoder: it looks both ways in every layer, and cannot do otherwise.
    reattach: its blocks drop keyword arguments on the way to attention; a hook puts the layout back.
    exclusive_window: both ways, its windows hold |i - j| < w; elsewhere |i - j| <= w, as in transformers' own masks.
    offset: positions start at the padding id plus one (RoBERTa and its children).
    spared: linear layers that are not adapted unless they are named, since PEFT refuses them in this family.
    pooler: it would grow a randomly initialised pooler, which is left out.
    why: the end of the sentence "cannot be unmasked: …" where there is more to say than the default.
    """

    packed: bool = False
    encoder: bool = False
    reattach: bool = False
    exclusive_window: bool = False
    offset: bool = False
    spared: tuple[str, ...] = ()
    pooler: bool = False
    why: str = "nobody has tried this family with labeltune's attention, so it stays causal"


_PACKED = Family(packed=True)
_ENCODER = Family(packed=True, encoder=True)
_BERT = replace(_ENCODER, pooler=True)
_ROBERTA = replace(_BERT, offset=True)
_ROWS_ENCODER = Family(encoder=True)
_ALIBI = Family(why="its position bias (ALiBi) is defined for earlier tokens only")
_RECURRENT = Family(why="its layers read from left to right by construction")
_MAMBA = replace(_RECURRENT, spared=("out_proj",))
_OWN = Family(why="its attention is its own code, which applies the causal mask itself")

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "apertus", "arcee", "biogpt", "bitnet", "cohere", "cohere2", "cwm", "ernie4_5", "ernie4_5_moe", "exaone4",
            "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox",
            "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "jais2", "llama", "ministral",
            "ministral3", "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon",
            "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
            "vaultgemma",
        ),
        _PACKED,
    ),
    "stablelm": replace(_PACKED, reattach=True),
    # encoders
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": _ENCODER,
    "electra": _ENCODER,
    "eurobert": _ENCODER,
    "modernbert": replace(_ENCODER, exclusive_window=True),
    "nomic_bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "deberta-v2": _ROWS_ENCODER,
    "luke": replace(_ROWS_ENCODER, pooler=True, offset=True),
    "mpnet": replace(_ROWS_ENCODER, pooler=True, offset=True),
    # rows of equal length, and why
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "codegen": _OWN,
    "falcon": _OWN,
    "gptj": _OWN,
    "xglm": _OWN,
    "gpt_neo": Family(why="its attention keeps a causal buffer and ignores every other mask"),
    "falcon_mamba": _MAMBA,
    "jamba": _RECURRENT,
    "mamba": _MAMBA,
    "mamba2": _MAMBA,
    "rwkv": _RECURRENT,
}  # fmt: skip

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_STRETCHED = ("dynamic", "longrope")


def family_of(config: PretrainedConfig) -> Family:
    """The family's row, or the one of the unknown; a member that differs from its family is set right here."""
    family = FAMILIES.get(config.model_type, Family())
    if not set(getattr(config, "layer_types", None) or ()) <= _LAYER_TYPES:
        why = family.why if family.spared else "it mixes attention with layers of other kinds"
        return Family(why=why, spared=family.spared)
    if getattr(config, "use_bidirectional_attention", None):  # EmbeddingGemma: a decoder turned encoder
        return replace(family, encoder=True, exclusive_window=True)
    return family


def context_of(config: PretrainedConfig) -> int | None:
    """The longest document in tokens, or None where there is no limit.

    A rotary embedding that changes its base with the longest document of the pass (`dynamic`, `longrope`) would let a
    document depend on its neighbours; there the limit is the length up to which it stays as it was trained.
    """
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if limit is None:
        return None
    if family_of(config).offset:
        limit -= config.pad_token_id + 1
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if part.get("rope_type") in _STRETCHED:
            limit = min(limit, part.get("original_max_position_embeddings") or limit)
    return int(limit)


def position_start(config: PretrainedConfig) -> int:
    """The number of a document's first position."""
    return int(config.pad_token_id) + 1 if family_of(config).offset else 0
