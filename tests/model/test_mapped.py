"""A backbone that is to be divided stays in its file's memory map until then, and becomes what it is if read whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from labeltune.model import backbone as backbones
from labeltune.model.settings import ModelConfig

SIZE = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
SMALL = SIZE | {"hidden_size": 24, "intermediate_size": 32, "head_dim": 12}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL)),  # has a buffer that is made in the model's dtype
}


def widen(model: torch.nn.Module, blocks: object) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.float()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("family", MODELS)
def test_placed_from_the_map_it_is_the_backbone_that_is_read_whole(family: str, stored, tmp_path: Path) -> None:
    MODELS[family]().to(stored).save_pretrained(tmp_path)
    config = ModelConfig(name=str(tmp_path), dtype="fp32")
    whole = backbones.load(config, device="cpu").model.state_dict(keep_vars=True)
    placed = backbones.load(config, device="cpu", place=widen)
    assert placed.dtype == torch.float32 and placed.model.state_dict().keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in placed.model.state_dict().items())
    buffers = dict(backbones.load(config, device="cpu").model.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in placed.model.named_buffers())


MEASURE = """
import sys
from labeltune.model import backbone as backbones
from labeltune.model.settings import ModelConfig

def anonymous():
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

class Placed(Exception):
    pass

def place(model, blocks):
    numbers = sum(parameter.numel() for parameter in model.parameters())
    print((anonymous() - before) / (4 * numbers))
    raise Placed

before = anonymous()
try:
    backbones.load(ModelConfig(name=sys.argv[1], dtype="fp32"), device="cpu", place=place)
except Placed:
    pass
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what a process holds")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_until_it_is_placed_no_copy_of_the_weights_is_made(stored, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZE, hidden_size=1024, intermediate_size=8192)).to(stored).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1  # of a whole copy in fp32: 237 MB
