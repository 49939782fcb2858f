"""Encoders with their own heads, fine-tuned whole: the weights of stock models trained on padded batches."""

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import labeltune
from labeltune import ModelError, SettingsError
from labeltune.keys import Key
from labeltune.training.order import Order
from tests.conftest import ENCODERS, moods, names, write_jsonl

STEPS, ROWS = 4, 8


def train(rows, folder, out, **settings):
    fixed = {
        "lora.kind": "full",
        "head.kind": "stock",
        "train.lr": 1e-3,
        "train.steps": STEPS,
        "train.batch_rows": ROWS,
        "train.threads": 1,
    }
    data = write_jsonl(out.parent / f"{out.name}.jsonl", rows)
    return labeltune.train(data, dev=data, model=str(folder), out=out, settings=fixed | settings)


def stock_training(run, rows, model, read):
    """The same steps on a stock model: padded batches with a mask, AdamW, transformers' own schedule.

    read: rows -> the keyword arguments of a forward pass, labels included.
    """
    config = run.config.train
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.lr)
    schedule = hf.get_linear_schedule_with_warmup(optimiser, 1, STEPS)
    order = Order(torch.ones(len(rows)).numpy(), config, Key.of(config.seed).fold("trial"))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for step in range(STEPS):
        model(**read([rows[number] for number in order.at(step)[1]])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model.state_dict()


def padded(tokenizer, texts):
    found = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, found))
    ids = torch.tensor([row + [1] * (width - len(row)) for row in found])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in found])
    return ids, mask


def equal_to_the_stock_weights(run, stock, head):
    """head: the stock model's names of the modules that the head's stages are."""
    body = load_file(run.folder / "backbone" / "model.safetensors")
    ours = {name: tensor for name, tensor in load_file(run.folder / "head.safetensors").items()}
    for name, tensor in body.items():
        (theirs,) = [value for key, value in stock.items() if key == name or key.endswith(f".{name}")]
        assert (tensor - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name
    found = 0
    for number, module in enumerate(head):
        for key, value in stock.items():
            if key.startswith(f"{module}."):
                mine = ours.pop(f"head.stages.{number}." + key.removeprefix(f"{module}."))
                assert (mine - value).norm() <= 1e-4 * value.norm() + 1e-7, key
                found += 1
    assert found and not ours


TEXT_HEADS = {
    "bert": ("bert.pooler", "classifier"),
    "roberta": ("classifier",),
    "modernbert": ("head", "classifier"),
    "luke": ("luke.pooler", "classifier"),
}


def fresh(model_class, folder, width, settings):
    """The stock model with the head that the training began with: drawn from the same seed."""
    from labeltune.keys import generator

    config = hf.AutoConfig.from_pretrained(folder)
    config.num_labels = width
    with torch.random.fork_rng():
        torch.manual_seed(generator(Key.of(settings.train.seed).fold("weights").fold("head")).initial_seed())
        return model_class.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("family", ENCODERS)
def test_a_text_classifier_ends_with_the_weights_of_the_stock_model(tmp_path, tiny_encoder, tiny_tokenizer, family):
    folder, rows = tiny_encoder(family), moods(32)
    run = train(rows, folder, tmp_path / "run")
    classes = sorted({row["label"] for row in rows})

    def read(chosen):
        ids, mask = padded(tiny_tokenizer, [row["text"] for row in chosen])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([classes.index(row["label"]) for row in chosen]),
        }

    model = fresh(hf.AutoModelForSequenceClassification, folder, len(classes), run.config)
    equal_to_the_stock_weights(run, stock_training(run, rows, model, read), TEXT_HEADS[family])
    assert (run.config.model.unmask, run.config.model.pooling) == ("all", "first")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_tagger_ends_with_the_weights_of_the_stock_model(tmp_path, tiny_encoder, tiny_tokenizer, family):
    folder, rows = tiny_encoder(family), names(32)
    run = train(rows, folder, tmp_path / "run")
    tags = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]

    def read(chosen):
        texts = [" ".join(row["tokens"]) for row in chosen]
        ids, mask = padded(tiny_tokenizer, texts)
        labels = torch.full_like(ids, -100)
        for number, (row, text) in enumerate(zip(chosen, texts, strict=True)):
            offsets = tiny_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            at = 0
            for word, tag in zip(row["tokens"], row["tags"], strict=True):
                labels[number, next(n for n, (a, b) in enumerate(offsets) if a <= at < b and b - a > 0)] = tags.index(
                    tag
                )
                at += len(word) + 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    model = fresh(hf.AutoModelForTokenClassification, folder, len(tags), run.config)
    head = ("head", "classifier") if family == "modernbert" else ("classifier",)
    equal_to_the_stock_weights(run, stock_training(run, rows, model, read), head)


def test_an_encoder_answers_after_loading_as_it_was_scored(tmp_path, tiny_encoder):
    rows = moods(32)
    run = train(rows, tiny_encoder("roberta"), tmp_path / "run")
    answers = labeltune.load(run.folder).predict([row["text"] for row in rows])
    right = sum(answer.label == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) == run.metrics["dev"]["accuracy"]


def test_the_stock_head_of_a_decoder_is_a_linear_layer(tmp_path, tiny_folder):
    run = train(moods(16), tiny_folder, tmp_path / "run", **{"lora.kind": "lora"})
    head = load_file(run.folder / "head.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {"head.stages.0.weight": (3, 32)}


def test_a_stock_head_without_a_way_to_read_it_is_refused(tmp_path, tiny_folder, tiny_encoder):
    with pytest.raises(SettingsError, match=r"head\.kind: .*CRF"):
        train(names(8), tiny_encoder("bert"), tmp_path / "crf", **{"head.crf": True})
    with pytest.raises(SettingsError, match="encoder: it looks both ways"):
        train(moods(9), tiny_encoder("bert"), tmp_path / "causal", **{"model.unmask": "none"})


def test_a_family_whose_stock_head_is_unknown_is_named(tmp_path, tiny_tokenizer):
    config = hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=len(tiny_tokenizer))
    hf.AutoModel.from_config(config).save_pretrained(tmp_path / "mamba")
    tiny_tokenizer.save_pretrained(tmp_path / "mamba")
    with pytest.raises(ModelError, match="no stock head of the family mamba is known"):
        train(moods(9), tmp_path / "mamba", tmp_path / "run")
