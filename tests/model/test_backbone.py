"""Loading complete or not at all, the notation of layers, depths, frozen bodies under checkpointing."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from labeltune.errors import LabeltuneError, ModelError, SettingsError
from labeltune.model.backbone import load, wrap
from labeltune.model.checkpoints import load_tokenizer, resolve, weights_sha256
from labeltune.model.ranges import parse_layers
from labeltune.model.selfcheck import check
from labeltune.model.settings import ModelConfig

LENGTHS = (5, 9, 5, 1, 7)
CAUSAL, ALL, HALF = (False,) * 4, (True,) * 4, (False, True, True, False)


def named(folder, **settings):
    return ModelConfig(name=str(folder), **settings)


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint, and a function that rewrites its weights."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)

    def rewrite(change):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return rewrite


# Loading


def test_a_loaded_backbone_is_the_stock_model(tiny_folder, documents, alone, apart):
    backbone = load(named(tiny_folder), device="cpu")
    stock = AutoModel.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    docs = documents(LENGTHS)
    got = backbone.hidden(docs.batch(), docs.layout([HALF]), [4])[0]
    assert apart(got, alone(stock, docs, HALF)) <= 1e-5
    assert (backbone.layers, backbone.hidden_size, backbone.context) == (4, 32, 256)
    assert backbone.packed
    assert backbone.dtype == torch.float32
    assert not any(weight.requires_grad for weight in backbone.parameters())


def test_a_tied_checkpoint_that_stores_only_its_head_loads_right(shared, documents, alone, apart):
    folder = shared / "models" / "tinystories-656k"
    stock = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").model.eval()
    backbone, docs = load(named(folder), device="cpu"), documents(LENGTHS)
    got = backbone.hidden(docs.batch(), docs.layout([(False, False)]), [2])[0]
    assert apart(got, alone(stock, docs, (False, False))) <= 1e-5
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(backbone.model.get_input_embeddings().weight, stored)


def test_a_missing_weight_is_named(broken):
    folder = broken(lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"does not fit its configuration: layers\.2\.mlp\.up_proj\.weight is missing"):
        load(named(folder), device="cpu")


def test_a_weight_left_over_in_a_block_is_named(broken):
    folder = broken(lambda weights: weights.update({"model.layers.9.self_attn.q_proj.weight": torch.zeros(32, 32)}))
    with pytest.raises(ModelError, match=r"model\.layers\.9\.self_attn\.q_proj\.weight is left over"):
        load(named(folder), device="cpu")


def test_a_weight_of_another_shape_is_named(broken):
    folder = broken(lambda weights: weights.update({"model.layers.1.self_attn.q_proj.weight": torch.zeros(16, 32)}))
    with pytest.raises(
        ModelError, match=r"layers\.1\.self_attn\.q_proj\.weight has the shape \(16, 32\), not \(32, 32\)"
    ):
        load(named(folder), device="cpu")


def test_a_missing_embedding_is_not_made_up_for_a_tied_model(broken):
    folder = broken(lambda weights: weights.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is missing"):
        load(named(folder), device="cpu")


def test_a_truncated_file_is_damaged(broken):
    folder = broken(lambda weights: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cannot be read.*incomplete or damaged"):
        load(named(folder), device="cpu")


@pytest.mark.parametrize(
    ("left", "fault"),
    [
        ([], "no config.json"),
        (["config.json"], "no safetensors weights; download the whole model"),
        (["config.json", "pytorch_model.bin"], "no safetensors weights; save the model in safetensors format"),
    ],
)
def test_an_incomplete_folder_is_refused_before_anything_is_read(left, fault, tiny_folder, tmp_path):
    for name in left:
        (tmp_path / name).write_bytes((tiny_folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=fault):
        load(named(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "a b", "x" * 5000 + "/../", "\0", "ü/ß"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(ModelError, match="there is no folder"):
        resolve(ModelConfig(name=name))


def test_a_hub_model_that_cannot_be_fetched_is_one_sentence():
    with pytest.raises(ModelError, match=r"model.name = 'nobody/nothing': .*without network, name a folder"):
        load(ModelConfig(name="nobody/nothing"), device="cpu")


def test_without_a_name_the_way_out_is_said():
    with pytest.raises(SettingsError, match=r"model\.name: no backbone is named"):
        resolve(ModelConfig())


def test_the_bundled_backbone_is_found_or_missed_by_name(monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setattr("labeltune.model.checkpoints.resources.files", lambda _: tmp_path)
    with pytest.raises(ModelError, match="lacks the bundled backbone 'mini'"):
        resolve(ModelConfig(name="mini"))
    shutil.copytree(tiny_folder, tmp_path / "mini")
    assert load(ModelConfig(name="mini"), device="cpu").layers == 4


def test_an_encoder_decoder_is_refused(tmp_path):
    LlamaConfig().to_json_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="t5 is an encoder-decoder model; choose a decoder"):
        load(named(tmp_path), device="cpu")


def test_code_in_a_checkpoint_is_not_run_unasked(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "own")
    text = (tmp_path / "own" / "config.json").read_text()
    own = text.replace('"model_type": "llama"', '"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}')
    (tmp_path / "own" / "config.json").write_text(own)
    (tmp_path / "own" / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match=r"set model\.trust_remote_code = true"):
        load(named(tmp_path / "own"), device="cpu")


def test_the_dtype_is_the_one_asked_for(tiny_folder):
    assert load(named(tiny_folder, dtype="bf16"), device="cpu").dtype == torch.bfloat16
    assert load(named(tiny_folder, dtype="auto"), device="cpu").dtype == torch.float32


def test_a_whole_model_can_be_trained_and_a_quantised_one_cannot(tiny_folder):
    assert all(weight.requires_grad for weight in load(named(tiny_folder), device="cpu", trainable=True).parameters())
    with pytest.raises(SettingsError, match=r"model.quantization: a quantised backbone cannot be trained whole"):
        load(named(tiny_folder, quantization="nf4"), device="cpu", trainable=True)


@pytest.fixture
def wide_folder(tiny_model, tmp_path):
    """A Llama wide enough for blocks of 64 weights."""
    tiny_model("llama", hidden_size=128, intermediate_size=128).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


@pytest.mark.slow
def test_an_nf4_backbone_is_the_stock_model_with_its_weights_rounded(wide_folder, documents, alone, apart):
    from bitsandbytes.functional import dequantize_4bit

    backbone = load(named(wide_folder, quantization="nf4"), device="cpu")
    stock, docs = AutoModel.from_pretrained(wide_folder, attn_implementation="eager").eval(), documents(LENGTHS)
    for name, module in backbone.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            stock.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
    got = backbone.hidden(docs.batch(), docs.layout([HALF]), [4])[0]
    assert apart(got, alone(stock, docs, HALF)) <= 1e-4
    assert len(backbone.linear_modules()) == 16
    assert check(backbone, HALF).moved > 0


@pytest.mark.slow
def test_gradients_pass_through_an_nf4_backbone_as_through_its_rounded_weights(wide_folder, documents):
    from bitsandbytes.functional import dequantize_4bit

    four_bits, exact = (load(named(wide_folder, quantization=q), device="cpu") for q in ("nf4", "none"))
    docs = documents(LENGTHS)
    for name, module in four_bits.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            exact.model.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
    found = []
    for backbone in (four_bits, exact):
        words = backbone.model.get_input_embeddings().weight.requires_grad_()
        backbone.hidden(docs.batch(), docs.layout([HALF]), [4])[0].square().sum().backward()
        found.append(words.grad)
    assert found[1].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 * float(found[1].abs().max()))


@pytest.mark.slow
def test_an_int8_backbone_is_near_the_stock_model(wide_folder, documents, apart):
    quantised, plain = (load(named(wide_folder, quantization=q), device="cpu") for q in ("int8", "none"))
    docs = documents(LENGTHS)
    outputs = [b.hidden(docs.batch(), docs.layout([HALF]), [4])[0] for b in (quantised, plain)]
    assert 1e-6 < apart(*outputs) < 0.3
    assert check(quantised, HALF).moved > 0


def test_the_hash_is_the_one_of_the_files(tiny_folder, broken):
    before = load(named(tiny_folder), device="cpu").body_sha256()
    assert before == weights_sha256(tiny_folder)
    assert before != weights_sha256(broken(lambda weights: weights["model.norm.weight"].mul_(1.001)))


# Tokenizers


def test_the_tokenizer_comes_with_the_checkpoint(tiny_folder):
    assert load_tokenizer(named(tiny_folder)).is_fast


def test_a_folder_without_tokenizer_is_refused(broken):
    folder = broken(lambda weights: None)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="holds no tokenizer; copy the model's tokenizer files there"):
        load_tokenizer(named(folder))


def test_a_damaged_tokenizer_is_one_sentence(broken):
    folder = broken(lambda weights: None)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        load_tokenizer(named(folder))


# The notation of layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("none", []),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("first:2", [0, 1]),
        ("last:2", [4, 5]),
        ("2:4", [2, 3]),
        ("0:1, 4:6", [0, 4, 5]),
        ("first:1,last:1,2:3", [0, 2, 5]),
        ("0%:50%", [0, 1, 2]),
        ("25%:50%", [2]),  # from 1.5 to 3: a half rounds up
        ("0%:25%,75%:100%", [0, 1, 5]),
    ],
)
def test_layers_are_named_by_range(text, layers):
    assert parse_layers(text, 6, at="model.unmask") == tuple(layer in layers for layer in range(6))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "some",
        "first",
        "first:0",
        "last:7",
        "4:2",
        "0:7",
        "3:",
        ":3",
        "-1:2",
        "first:8,",
        "50%:20%",
        "0%:101%",
        "0%:5%",
        "0%:3",
    ],
)
def test_a_range_that_names_no_layers_of_this_model_is_refused(text):
    with pytest.raises(SettingsError, match=r"^model.unmask: .*; "):
        parse_layers(text, 6, at="model.unmask")


@given(st.text(max_size=40))
def test_any_text_is_layers_or_a_sentence(text):
    try:
        assert len(parse_layers(text, 3, at="x")) == 3
    except LabeltuneError as error:
        assert str(error).startswith("x: ")


# Depth


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "gemma3_text", "bloom", "mamba", "bert"])
def test_a_cut_body_equals_the_tapped_one(name, tiny_model, documents, apart):
    docs, policy = documents(LENGTHS), (name == "bert",) * 4
    cut, whole = wrap(tiny_model(name), depth=2), wrap(tiny_model(name))
    assert (cut.layers, whole.layers) == (2, 4)
    outputs = [b.hidden(docs.batch(), docs.layout([policy[: b.layers]]), [2])[0] for b in (cut, whole)]
    assert torch.equal(*outputs)


def test_a_depth_is_the_final_norm_of_that_block(tiny_model, documents, apart):
    docs, stock = documents((6,)), tiny_model("llama").eval()
    states = stock(input_ids=docs.ids[0][None], output_hidden_states=True).hidden_states
    for depth in (1, 2, 3):
        got = wrap(tiny_model("llama")).hidden(docs.batch(), docs.layout([CAUSAL]), [depth])[0]
        assert apart(got, stock.norm(states[depth])[0]) <= 1e-5


def test_a_depth_that_does_not_exist_is_refused(tiny_model, tiny_folder, documents):
    docs = documents((3,))
    with pytest.raises(SettingsError, match=r"model.depth: the model has no block 9; it has 4 blocks"):
        load(named(tiny_folder, depth=9), device="cpu")
    with pytest.raises(SettingsError, match=r"model.depth: there is no block 5; 1 to 4 exist"):
        wrap(tiny_model("llama")).hidden(docs.batch(), docs.layout([CAUSAL]), [5])


# Gradients under checkpointing


@pytest.mark.parametrize("name", ["llama", "stablelm", "gpt2", "opt", "bloom", "mamba"])
def test_checkpointing_changes_no_gradient(name, tiny_model, documents):
    def gradients(checkpointing):
        backbone, docs = wrap(tiny_model(name), checkpointing=checkpointing), documents(LENGTHS, slices=(0, 2, 5))
        policies = [CAUSAL, HALF if backbone.packed else CAUSAL]
        weights = [module.weight.requires_grad_() for module in backbone.linear_modules().values()]
        backbone.eval()  # stock models would stop checkpointing here
        first, second = (backbone.hidden(docs.batch(), docs.layout(p), [4, 2]) for p in (policies, policies[::-1]))
        seen = sum((states**3).sum() for states in (*first, *second))
        return torch.autograd.grad(seen, weights), _recomputed(backbone)

    (plain, idle), (checkpointed, busy) = gradients(False), gradients(True)
    assert (idle, busy) == (False, True)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(plain, checkpointed, strict=True))


def _recomputed(backbone):
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in backbone.modules())


# Modules to adapt


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gpt2", {"c_attn", "c_proj"}),
        ("gpt_neox", {"query_key_value", "dense"}),
        ("phi3", {"qkv_proj", "o_proj"}),
        ("opt", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("bert", {"query", "key", "value", "dense"}),
        ("falcon", {"query_key_value", "dense"}),
        ("mamba", {"in_proj", "x_proj"}),  # one is never called, one PEFT refuses
    ],
)
def test_the_adapted_layers_are_attentions_own(name, leaves, tiny_model):
    backbone = wrap(tiny_model(name))
    modules = backbone.linear_modules()
    assert {module.rpartition(".")[2] for module in modules} == leaves
    assert len(modules) == 4 * len(leaves)
    assert all(backbone.model.get_submodule(module) is found for module, found in modules.items())


def test_a_layer_that_reads_positions_too_is_not_adapted_unless_it_is_named(tiny_model):
    words = {"share_att_key": True, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    backbone = wrap(tiny_model("deberta-v2", **words))
    assert {name.rpartition(".")[2] for name in backbone.linear_modules()} == {"value_proj", "dense"}
    assert len(backbone.linear_modules(["query_proj"])) == 4


def test_the_size_is_that_of_what_comes_out(tiny_model):
    backbone = wrap(tiny_model("opt", word_embed_proj_dim=16))
    assert backbone.hidden_size == 16


@pytest.mark.parametrize(("name", "own"), [("luke", 62), ("mpnet", 62), ("xlm-roberta", 62), ("bert", 64)])
def test_positions_that_begin_behind_the_padding_shorten_the_context(tiny_model, name, own):
    stock = tiny_model(name, max_position_embeddings=64, pad_token_id=1)
    assert wrap(stock).context == own


def test_targets_are_found_by_the_end_of_their_name(tiny_model):
    backbone = wrap(tiny_model("llama"))
    assert len(backbone.linear_modules(["q_proj", "mlp.up_proj"])) == 8
    with pytest.raises(SettingsError, match=r"lora.targets: llama has no linear layer called 'query'; "):
        backbone.linear_modules(["query"])
