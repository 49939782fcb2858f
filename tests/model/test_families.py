"""The table of quirks: every row against transformers itself, and the rows' traps."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, LlamaConfig

from labeltune.errors import ModelError, SettingsError
from labeltune.model import families
from labeltune.model.backbone import wrap
from labeltune.model.families import FAMILIES, Family, context_of, family_of, position_start

CAUSAL, ALL, HALF = (False,) * 4, (True,) * 4, (False, True, True, False)
LENGTHS = (5, 9, 5, 1, 7)
UNBUILT = {"codegen", "jamba", "mamba2"}  # no tiny configuration that transformers accepts with our sizes
DECODERS = sorted(name for name, family in FAMILIES.items() if family.packed and not family.encoder)
ENCODERS = sorted(name for name, family in FAMILIES.items() if family.encoder)
ROWS = sorted(name for name, family in FAMILIES.items() if not family.packed and not family.encoder)


def test_the_table_names_families_of_transformers():
    assert set(FAMILIES) <= set(CONFIG_MAPPING)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_packed_family_equals_documents_alone(name, tiny_model, documents, alone, apart):
    docs, stock, backbone = documents(LENGTHS), tiny_model(name).eval(), wrap(tiny_model(name))
    assert backbone.packed
    for policy in (CAUSAL, ALL, HALF):
        with torch.no_grad():
            got = backbone.hidden(docs.batch(), docs.layout([policy]), [4])[0]
            assert apart(got, alone(stock, docs, policy)) <= 1e-5


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_equals_documents_alone(name, tiny_model, documents, alone, apart):
    docs, stock, backbone = documents(LENGTHS), tiny_model(name).eval(), wrap(tiny_model(name))
    assert backbone.packed == FAMILIES[name].packed
    with torch.no_grad():
        got = backbone.hidden(docs.batch(), docs.layout([backbone.policy("all")]), [4])[0]
        assert apart(got, alone(stock, docs, CAUSAL)) <= 1e-5  # nothing unmasked by hand: stock looks both ways


@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta-v2"])
def test_an_encoder_cannot_be_made_causal(name, tiny_model):
    with pytest.raises(SettingsError, match=r"model.unmask: .* encoder: it looks both ways .*set model.unmask = 'all'"):
        wrap(tiny_model(name)).policy("none")


@pytest.mark.parametrize("name", sorted(set(ROWS) - UNBUILT))
def test_rows_of_equal_length_equal_documents_alone(name, tiny_model, documents, alone, apart):
    docs, stock, backbone = documents(LENGTHS), tiny_model(name).eval(), wrap(tiny_model(name))
    assert not backbone.packed
    with torch.no_grad():
        got = backbone.hidden(docs.batch(), docs.layout([CAUSAL]), [4])[0]
        assert apart(got, alone(stock, docs, CAUSAL)) <= 1e-5


@pytest.mark.parametrize("name", sorted(set(ROWS) - UNBUILT))
def test_what_cannot_be_unmasked_is_refused_by_name(name, tiny_model):
    backbone = wrap(tiny_model(name))
    assert backbone.policy("none") == CAUSAL
    with pytest.raises(ModelError, match=rf"model.unmask: {name} cannot be unmasked: .+; set model.unmask = 'none'"):
        backbone.policy("last:1")


def test_a_family_nobody_has_tried_runs_in_rows_and_stays_causal(tiny_model, documents, alone, apart, monkeypatch):
    monkeypatch.delitem(FAMILIES, "llama")
    docs, backbone = documents(LENGTHS), wrap(tiny_model("llama", attention="sdpa"))
    assert not backbone.packed
    got = backbone.hidden(docs.batch(), docs.layout([CAUSAL]), [4])[0]
    assert apart(got, alone(tiny_model("llama").eval(), docs, CAUSAL)) <= 1e-5
    with pytest.raises(ModelError, match="nobody has tried"):
        backbone.policy("all")


@pytest.mark.parametrize("name", ["deberta-v2", "luke", "mpnet", "nemotron", "bloom"])
def test_the_table_is_not_trusted_where_the_function_is_not_called(name, tiny_model, monkeypatch):
    monkeypatch.setitem(FAMILIES, name, Family(packed=True, encoder=name not in ("nemotron", "bloom")))
    backbone = wrap(tiny_model(name))
    assert not backbone.packed
    assert backbone.model.config._attn_implementation == "eager"


def test_a_family_that_drops_the_layout_is_not_taken_for_packed(tiny_model, monkeypatch):
    monkeypatch.setitem(FAMILIES, "stablelm", Family(packed=True))
    assert not wrap(tiny_model("stablelm")).packed


@pytest.mark.parametrize("kind", ["linear_attention", "chunked_attention", "conv"])
def test_layers_of_other_kinds_are_never_packed(kind):
    config = AutoConfig.for_model("qwen3", num_hidden_layers=2)
    config.layer_types = ["full_attention", kind]
    assert not family_of(config).packed
    assert "other kinds" in family_of(config).why


def test_a_gemma_made_for_embeddings_is_an_encoder(tiny_model, documents, alone, apart):
    changes = dict(use_bidirectional_attention=True, sliding_window=4)
    docs, backbone = documents(LENGTHS), wrap(tiny_model("gemma3_text", **changes))
    assert backbone.family.encoder
    got = backbone.hidden(docs.batch(), docs.layout([backbone.policy("all")]), [4])[0]
    assert apart(got, alone(tiny_model("gemma3_text", **changes).eval(), docs, CAUSAL)) <= 1e-5


def test_roberta_counts_positions_from_its_padding_id():
    config = AutoConfig.for_model("roberta", pad_token_id=1, max_position_embeddings=514)
    assert (position_start(config), context_of(config)) == (2, 512)
    assert position_start(LlamaConfig(pad_token_id=1)) == 0


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_stretch_with_the_neighbours_are_kept_from_stretching(kind, tiny_model, documents):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    name = "phi3" if kind == "longrope" else "llama"
    model = tiny_model(name, rope_parameters=rope, original_max_position_embeddings=16, sliding_window=None)
    backbone, docs = wrap(model), documents((3, 17))
    assert backbone.context == 16
    with pytest.raises(ModelError, match=r"data.max_tokens: a document of 17 tokens is longer than the 16"):
        backbone.hidden(docs.batch(), docs.layout([CAUSAL]), [4])


def test_the_unknown_row_is_the_careful_one():
    assert Family() == families.family_of(AutoConfig.for_model("t5"))
    assert not Family().packed
