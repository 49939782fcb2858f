"""Next-token logits at chosen places of a packed stream: against the stock causal model on each document alone."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from labeltune.errors import ModelError, SettingsError
from labeltune.keys import Key
from labeltune.model import causal as causals
from labeltune.model.backbone import wrap
from labeltune.model.causal import Causal
from labeltune.model.checkpoints import load_tokenizer
from labeltune.model.layout import plain_layout
from labeltune.model.settings import ModelConfig

SIZE = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SIZE |= dict(num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TINY = {
    "llama": {},
    "gemma2": dict(head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.5),
    "cohere2": dict(logit_scale=0.3),
    "granite": dict(logits_scaling=3.0),
    "gpt2": {},
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "stablelm": {},
    "bloom": {},  # rows of equal length
    "mamba": dict(state_size=4, time_step_rank=4),
}
LENGTHS = (5, 9, 5, 1, 7)


def stock(name: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **SIZE, **TINY[name])
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.mark.filterwarnings("ignore")  # mamba says that it has no fast kernels
@pytest.mark.parametrize("name", TINY)
def test_logits_at_chosen_places_are_those_of_each_document_alone(name, apart):
    docs = torch.randint(3, 40, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        oracle = stock(name)
        want = torch.cat([oracle(input_ids=ids[None], use_cache=False).logits[0] for ids in docs.split(LENGTHS)])
        model = stock(name)
        causal = Causal(model, wrap(model), model.config)
        layout = plain_layout(LENGTHS, (False, False), torch.device("cpu"))
        positions = torch.cat([torch.arange(n) for n in LENGTHS])
        at = torch.tensor([0, 3, 4, 7, 8, 20, 26])
        got = causal.logits(docs, positions, layout, at)
    assert got.shape == (len(at), 40)
    assert apart(got, want[at]) <= 1e-5


def test_the_families_under_test_do_more_than_an_output_matrix():
    for name in ("gemma2", "cohere2", "granite"):
        model, ids = stock(name), torch.tensor([[3, 4, 5]])
        with torch.no_grad():
            plain = model.get_output_embeddings()(model.base_model(input_ids=ids)[0])
            assert not torch.allclose(plain, model(input_ids=ids).logits, rtol=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_a_plain_one_with_its_authors_settings(tied, tmp_path: Path, tiny_folder: Path):
    facts = json.loads((tiny_folder / "config.json").read_text()) | dict(attention_dropout=0.3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(facts | dict(tie_word_embeddings=tied)))
    fresh = causals.build(path, tokenizer_of(tiny_folder), key=Key.of(0), device="cpu")
    fresh.save(tmp_path / "out", torch.float32)
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert plain.config.attention_dropout == 0.3 and plain.config.tie_word_embeddings == tied
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fresh.model.parameters(), strict=True))


def test_tied_weights_are_written_once_in_16_bits_too(tmp_path: Path, tiny_folder: Path):
    facts = json.loads((tiny_folder / "config.json").read_text()) | dict(tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(facts))
    fresh = causals.build(tmp_path / "config.json", tokenizer_of(tiny_folder), key=Key.of(0), device="cpu")
    fresh.save(tmp_path / "out", torch.bfloat16)
    count = sum(p.numel() for p in fresh.model.parameters())
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 2 * count + 10_000
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain.lm_head.weight, plain.model.embed_tokens.weight)


def test_a_fresh_model_is_a_function_of_its_key(tiny_folder: Path):
    def build(seed: int):
        torch.rand(seed + 1)  # what was drawn before does not matter
        config = tiny_folder / "config.json"
        return causals.build(config, tokenizer_of(tiny_folder), key=Key.of(seed), device="cpu").model.state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "no configuration"),
        ("[1]", "no configuration"),
        ("{}", "no configuration"),
        ('{"model_type": "nonsense"}', "no configuration"),
        ('{"model_type": "t5"}', "predicts no next token"),
        ('{"model_type": "bert"}', "predicts no next token"),
        ('{"model_type": "llama", "vocab_size": 3}', "vocab_size is 3"),
        ('{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}', "no configuration"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "no configuration"),
    ],
)
def test_a_configuration_that_is_none_is_told(content, said, tmp_path: Path, tiny_folder: Path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((SettingsError, ModelError), match=said):
        causals.build(tmp_path / "config.json", tokenizer_of(tiny_folder), key=Key.of(0), device="cpu")


def test_a_body_without_its_head_is_refused(tmp_path: Path, tiny_folder: Path):
    AutoModelForCausalLM.from_pretrained(tiny_folder).base_model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lm_head.weight is missing"):
        causals.load(ModelConfig(name=str(tmp_path)), device="cpu")


def tokenizer_of(folder: Path):
    return load_tokenizer(ModelConfig(name=str(folder)))
