"""What one training refuses before it begins."""

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from labeltune.bench import Bench
from labeltune.config import gather
from labeltune.errors import SettingsError
from labeltune.facts import quiet
from labeltune.job import prepare
from labeltune.ledger import Ledger
from labeltune.model.families import Family
from labeltune.training.distributed import World
from tests.conftest import QUICK


@pytest.mark.parametrize("known", [True, False], ids=["by its name", "once it has been tried"])
def test_a_backbone_in_rows_of_equal_length_is_not_divided(known, small, tiny_tokenizer, tmp_path, monkeypatch) -> None:
    model, out, divided = tmp_path / "gptj", tmp_path / "run", []
    with torch.random.fork_rng():
        size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8}
        GPTJForCausalLM(GPTJConfig(vocab_size=len(tiny_tokenizer), **size)).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    monkeypatch.setattr("labeltune.job.shard", lambda *_, **__: divided.append(1))
    if not known:
        monkeypatch.setattr("labeltune.job.family_of", lambda _: Family(packed=True))
    data = {name: str(small / f"moods-{name.split('.')[1]}.jsonl") for name in ("data.train", "data.dev")}
    config = gather(None, {**data, "model.name": str(model)}, QUICK)
    bench = Bench(out / "work", Ledger(out), out / "quarantine.jsonl")
    with pytest.raises(SettingsError, match=r"train\.shard: a sharded backbone does not go with gptj"):
        prepare(config, out, bench, quiet, world=World(0, 2, sharded=True))
    assert len(divided) == (not known)
