"""Tiny random models of many families, and the oracle: transformers' own eager attention on each document alone."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from labeltune.model.layout import Layout, plain_layout
from labeltune.schema import Batch

VOCABULARY = 40
SIZE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WINDOWED = ["sliding_attention", "full_attention"] * 2
TINY: dict[str, dict[str, object]] = {  # what differs from SIZE; windows are shorter than the documents
    "cwm": dict(head_dim=8, sliding_window=3, layer_types=WINDOWED),
    "ernie4_5_moe": dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_layer_start_index=1),
    "exaone4": dict(sliding_window=3, sliding_window_pattern=2, layer_types=WINDOWED),
    "glm": dict(head_dim=8),
    "glm4": dict(head_dim=8),
    "glm4_moe": dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8, n_group=1),
    "granitemoe": dict(num_local_experts=4, num_experts_per_tok=2),
    "helium": dict(head_dim=8),
    "hunyuan_v1_dense": dict(head_dim=8),
    "ministral3": dict(head_dim=8),
    "olmoe": dict(num_experts=4, num_experts_per_tok=2),
    "qwen2_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    "seed_oss": dict(head_dim=8),
    "vaultgemma": dict(head_dim=8, sliding_window=3, layer_types=WINDOWED, query_pre_attn_scalar=8),
    "distilbert": dict(dim=32, n_layers=4, n_heads=4, hidden_dim=48),
    "electra": dict(embedding_size=32),
    "camembert": dict(type_vocab_size=1),
    "luke": dict(entity_vocab_size=4, entity_emb_size=8),
    "xlm-roberta": dict(type_vocab_size=1),
    "cohere2": dict(sliding_window=3, layer_types=WINDOWED),
    "gemma": dict(head_dim=8),
    "gemma2": dict(
        head_dim=8, sliding_window=3, layer_types=WINDOWED, query_pre_attn_scalar=8, attn_logit_softcapping=2.0
    ),
    "gemma3_text": dict(head_dim=8, sliding_window=3, layer_types=WINDOWED, query_pre_attn_scalar=8),
    "gpt_neox": dict(rotary_pct=0.5),
    "gpt_oss": dict(head_dim=8, sliding_window=3, layer_types=WINDOWED, num_local_experts=4, num_experts_per_tok=2),
    "ministral": dict(head_dim=8, sliding_window=3, layer_types=WINDOWED),
    "mistral": dict(sliding_window=3),
    "mixtral": dict(num_local_experts=4, sliding_window=3),
    "olmo3": dict(sliding_window=3, layer_types=WINDOWED),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "phi3": dict(sliding_window=3),
    "qwen2": dict(use_sliding_window=True, sliding_window=3, layer_types=WINDOWED),
    "qwen3": dict(head_dim=8, use_sliding_window=True, sliding_window=3, layer_types=WINDOWED),
    "smollm3": dict(no_rope_layers=[1, 0, 1, 0]),
    "starcoder2": dict(sliding_window=3),
    "modernbert": dict(local_attention=4, global_attn_every_n_layers=2),
    "roberta": dict(type_vocab_size=1),
    "falcon": dict(alibi=False, new_decoder_architecture=False, num_ln_in_parallel_attn=1, ffn_hidden_size=48),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]], window_size=3, num_layers=4, num_heads=4),
    "gptj": dict(rotary_dim=4),
    "mpt": dict(d_model=32, n_heads=4, n_layers=4, max_seq_len=64, expansion_ratio=2),
    "mamba": dict(state_size=4, time_step_rank=4),
}

Random = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def tiny_model() -> Random:
    """A function: a family's name, and settings that differ, to a random model with weights large enough to matter."""

    def build(
        name: str, *, attention: str = "eager", dtype: torch.dtype = torch.float32, **changes: object
    ) -> PreTrainedModel:
        config = AutoConfig.for_model(name, **{**SIZE, **TINY.get(name, {}), **changes})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModel.from_config(config, attn_implementation=attention)
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.data.normal_(0, 0.2)
                else:
                    weight.data.add_(torch.randn_like(weight) * 0.2)
        return model.to(dtype)

    return build


class Documents:
    """Random documents of the given lengths, packed."""

    def __init__(self, lengths: Sequence[int], seed: int = 0, slices: Sequence[int] | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = tuple(lengths)
        self.ids = [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]
        self.slices = tuple(slices or (0, len(lengths)))

    def batch(self) -> Batch:
        empty, layout = torch.zeros(0), self.layout([(False,)])
        return Batch(
            input_ids=torch.cat(self.ids),
            position_ids=torch.cat([torch.arange(n) for n in self.lengths]),
            token_row=layout.token_row,
            token_index=layout.token_index,
            cu_seqlens=layout.cu_seqlens,
            piece_starts=empty,
            piece_ends=empty,
            piece_target=empty,
            piece_weights=empty,
            target_document=empty,
            slice_tokens=layout.slice_tokens,
            slice_documents=layout.slice_documents,
            slice_pieces=(),
            slice_targets=(),
            labels=(),
            rows=(),
        )

    def layout(self, policies: Sequence[Sequence[bool]]) -> Layout:
        """The layout of these documents; `policies` holds each slice's directions."""
        plain = plain_layout(self.lengths, policies[0], torch.device("cpu"))
        bounds = (0, *torch.tensor(self.lengths).cumsum(0).tolist())
        slices = self.slices if len(policies) > 1 else (0, len(self.lengths))
        return Layout(
            lengths=self.lengths,
            cu_seqlens=plain.cu_seqlens,
            slice_tokens=tuple(bounds[d] for d in slices),
            slice_documents=tuple(slices),
            unmasked=tuple(zip(*policies, strict=True)),
            token_row=plain.token_row,
            token_index=plain.token_index,
            keys=(None,) * len(policies),
        )


@pytest.fixture(scope="session")
def documents() -> type[Documents]:
    return Documents


@contextmanager
def _unmasked(model: PreTrainedModel, policy: Sequence[bool], window_excludes: bool):
    """Give the stock eager attention of the chosen layers a 4D mask that hides nothing but what its window hides."""

    def hook(module: torch.nn.Module, args: tuple, words: dict):
        n = next(t for t in (*args, *words.values()) if isinstance(t, Tensor)).shape[1]
        distance = (torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs()
        window = _window(model.config, module)
        hidden = torch.zeros_like(distance) > 0 if window is None else distance > window - window_excludes
        mask = torch.zeros(1, 1, n, n).masked_fill(hidden, torch.finfo(torch.float32).min)
        assert "attention_mask" in words
        return args, {**words, "attention_mask": mask}

    modules = [m for m in model.modules() if "layer_idx" in vars(m) and "Attention" in type(m).__name__]
    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in modules if policy[m.layer_idx]]
    assert len(handles) == sum(policy)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _window(config: object, module: torch.nn.Module) -> int | None:
    """The stock window of one layer, read from the configuration (not from what attention is given)."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[module.layer_idx] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


@pytest.fixture(scope="session")
def alone() -> Callable[..., Tensor]:
    """The oracle: each document by itself through the stock model with eager attention, put one after the other."""

    def run(model: PreTrainedModel, docs: Documents, policy: Sequence[bool], *, excludes: bool = False) -> Tensor:
        with _unmasked(model, policy, excludes):
            outputs = [model(input_ids=ids[None], use_cache=False)[0][0] for ids in docs.ids]
        return torch.cat(outputs)

    return run


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="session")
def apart() -> Callable[[Tensor, Tensor], float]:
    """max|a - b| / max|b|."""
    return relative
