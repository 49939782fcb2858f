"""From text to a folder that plain transformers load: figures against a naive computation, resuming, and bad input."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from labeltune import sweep, train
from labeltune.adaptation.adapt import Looked, Ready, adapt
from labeltune.adaptation.corpus import windows_of
from labeltune.adaptation.loop import Step
from labeltune.cli import main
from labeltune.errors import DataError, LabeltuneError, ModelError, RunError, SettingsError
from labeltune.facts import Said
from labeltune.interrupt import Interrupted, Stop
from labeltune.model import backbone as backbones
from labeltune.model.settings import ModelConfig
from labeltune.storage import lock

resource = pytest.importorskip("resource", reason="needs a system that limits the size of a file")

FAST = {"adapt.batch_tokens": 512, "adapt.context": 64, "adapt.threads": 1, "adapt.eval_steps": 4}


def tune(text: Path, out: Path, model: Path | None, *, facts: list | None = None, **settings: object) -> dict:
    """Adapt with `FAST` and settings of the section `adapt` (dotted names for others), and give the figures."""
    named = {name if "." in name else f"adapt.{name}": value for name, value in settings.items()}
    words = {name: named.pop(f"adapt.{name}") for name in ("resume", "from_config") if f"adapt.{name}" in named}
    adapt(
        text,
        out=out,
        model=None if model is None else str(model),
        heldout=0.2,
        settings=FAST | named,
        listen=(facts if facts is not None else []).append,
        **words,
    )
    return json.loads((out / "metrics.json").read_text())


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def naive(folder: Path, documents: list[str], context: int) -> tuple[float, int, float]:
    """Nats a token, tokens, bits a byte of the documents under the stock model, window by window, nothing packed."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        PreTrainedTokenizerFast.from_pretrained(folder),
    )
    nats, count = 0.0, 0
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start, first, end in windows_of(len(ids), context - 1, (context - 1) // 2):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start:end]]])
            with torch.no_grad():
                scores = model(input_ids=window).logits[0].log_softmax(-1)
            for place in range(first, end):
                nats -= scores[place - start, ids[place]].item()
                count += 1
    return nats / count, count, nats / math.log(2) / sum(len(text.encode()) for text in documents)


def held_out(texts: list[str], share: float = 0.2) -> list[str]:
    def number(text: str) -> int:
        words = " ".join(text.split()).encode()
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")

    return [text for text in texts if number(text) < share * 2**64]


# What comes out


@pytest.mark.parametrize("lora", [{}, {"lora.rank": 4}], ids=["whole", "adapter"])
def test_the_folder_is_a_plain_model_that_scores_as_the_trained_one(
    lora, tmp_path: Path, texts, text_file, tiny_folder
):
    figures = tune(text_file, tmp_path / "out", tiny_folder, lr=1e-3, **lora)
    for folder, found in ((tiny_folder, figures["before"]), (tmp_path / "out", figures["heldout"])):
        loss, tokens, bits = naive(folder, held_out(texts), 64)
        assert found["tokens"] == tokens
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert figures["heldout"]["loss"] < figures["before"]["loss"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the hen") == AutoTokenizer.from_pretrained(tiny_folder)(
        "the hen"
    )
    assert backbones.load(ModelConfig(name=str(tmp_path / "out")), device="cpu").layers == 4


def test_mntp_learns_to_fill_in_hidden_tokens(tmp_path: Path, text_file, tiny_folder):
    facts: list[object] = []
    figures = tune(text_file, tmp_path / "out", tiny_folder, facts=facts, objective="mntp", lr=3e-3, epochs=3)
    assert figures["heldout"]["loss"] < figures["before"]["loss"] - 0.1
    assert "bits_per_byte" not in figures["heldout"]
    (ready,) = [fact for fact in facts if isinstance(fact, Ready)]
    assert ready.config.model.unmask == "all"


def test_muon_leaves_the_magnitudes_of_dora_to_adamw(tmp_path: Path, text_file, tiny_folder):
    dora = {"lora.kind": "dora", "lora.rank": 4, "lora.dropout": 0, "optimiser": "muon", "matrix_lr": 3e-3, "lr": 3e-3}
    figures = tune(text_file, tmp_path / "out", tiny_folder, **dora)
    assert figures["heldout"]["loss"] < figures["before"]["loss"]


def test_a_fresh_model_learns_and_is_a_function_of_its_seed(tmp_path: Path, text_file, tiny_folder):
    (tmp_path / "c").mkdir()
    shutil.copy(tiny_folder / "config.json", tmp_path / "c")
    words = {"tokenizer": str(tiny_folder), "from_config": str(tmp_path / "c"), "epochs": 4, "lr": 1e-2}
    figures = [tune(text_file, tmp_path / f"out{n}", None, seed=seed, **words) for n, seed in enumerate((1, 1, 2))]
    assert figures[0]["heldout"]["bits_per_byte"] < figures[0]["before"]["bits_per_byte"] - 1
    assert weights(tmp_path / "out0") == weights(tmp_path / "out1") != weights(tmp_path / "out2")


def test_the_settings_in_the_folder_repeat_it(tmp_path: Path, text_file, tiny_folder):
    tune(text_file, tmp_path / "a", tiny_folder, lr=1e-3, mask_share=0.3)
    adapt(config=tmp_path / "a" / "adapt.toml", out=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_tokens_say_how_long_instead_of_epochs(tmp_path: Path, text_file, tiny_folder):
    facts: list[object] = []
    figures = tune(text_file, tmp_path / "out", tiny_folder, facts=facts, tokens=5_000)
    assert abs(figures["train"]["tokens"] - 5_000) < 512
    assert figures["train"]["steps"] == len([fact for fact in facts if isinstance(fact, Step)])


def test_what_was_found_in_the_text_is_said(tmp_path: Path, text_file, tiny_folder):
    facts: list[object] = []
    tune(text_file, tmp_path / "out", tiny_folder, facts=facts)
    said = [fact.text for fact in facts if isinstance(fact, Said)]
    assert any("documents are longer than 64 tokens and divided" in text for text in said)
    assert any("tokens held out" in text for text in said)
    looks = [fact for fact in facts if isinstance(fact, Looked)]
    assert looks[0].whole and looks[-1].whole and not looks[1].whole
    assert looks[1].pace > 0 and looks[1].seconds_left > 0 and looks[-1].seconds_left == 0


@pytest.mark.parametrize("rank", [None, 4])
def test_the_last_figures_are_of_the_saved_weights_or_say_so(rank, tmp_path: Path, texts, text_file, tiny_folder):
    lora = {"lora.rank": rank} if rank else {}
    figures = tune(text_file, tmp_path / "out", tiny_folder, lr=1e-3, save_dtype="bf16", **lora)
    loss, _, _ = naive(tmp_path / "out", held_out(texts), 64)
    told = "not of the merged weights" in (tmp_path / "out" / "README.md").read_text()
    if rank:
        assert figures["scored"] == "adapter" and told
    else:
        assert figures["scored"] == "saved weights" and not told
        assert figures["heldout"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_rows_that_cannot_be_used_lie_beside_the_model(tmp_path: Path, texts, tiny_folder):
    for name in ("a", "b"):
        rows = [*({"text": text} for text in texts), {"text": 7}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = FAST | {"data.on_bad_row": "quarantine", "adapt.tokens": 500}
    adapt([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], out=tmp_path / "out", model=str(tiny_folder), settings=settings)
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["at"] for line in lines] == ["a.jsonl:61", "b.jsonl:61"]


def test_without_held_out_text_there_are_no_figures_of_it(tmp_path: Path, text_file, tiny_folder):
    adapt(text_file, out=tmp_path / "out", model=str(tiny_folder), heldout=0, settings=FAST)
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["heldout"] == {} and figures["train"]["tokens"] > 0
    assert "| |" not in (tmp_path / "out" / "README.md").read_text()


# Going on


class Stopped(Exception):
    """Something that goes wrong in a listener."""


def at_step(number: int, act):
    def listen(fact: object) -> None:
        if isinstance(fact, Step) and fact.step == number:
            act()

    return listen


def begin(text: Path, out: Path, model: Path, listen, **settings: object) -> None:
    adapt(text, out=out, model=str(model), heldout=0.2, settings=FAST | {"adapt.lr": 1e-3} | settings, listen=listen)


def test_interrupted_and_resumed_ends_with_the_same_bits(tmp_path: Path, text_file, tiny_folder):
    whole = tune(text_file, tmp_path / "whole", tiny_folder, lr=1e-3)
    interrupt = at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="stopped at step 3"):
        begin(text_file, tmp_path / "out", tiny_folder, interrupt)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    adapt(out=tmp_path / "out", resume=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert again["heldout"] == whole["heldout"] and again["before"] == whole["before"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, whole["train"]["steps"] + 1))
    facts: list[object] = []
    adapt(out=tmp_path / "out", resume=True, listen=facts.append)
    assert [fact.text for fact in facts] == [f"{tmp_path / 'out'} is finished already"]


def test_ctrl_c_before_the_first_step_is_heard_and_leaves_no_model(tmp_path: Path, text_file, tiny_folder):
    tune(text_file, tmp_path / "whole", tiny_folder, lr=1e-3)

    def interrupt(fact: object) -> None:
        if isinstance(fact, Ready):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        begin(text_file, tmp_path / "out", tiny_folder, interrupt)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    adapt(out=tmp_path / "out", resume=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_stop_at_step_0_leaves_no_model(tmp_path: Path, text_file, tiny_folder, monkeypatch):
    @contextmanager
    def asked():
        stop = Stop()
        stop.asked = True
        yield stop

    monkeypatch.setattr("labeltune.adaptation.adapt.graceful", asked)
    with pytest.raises(Interrupted, match="stopped before the first step; the same command with --resume goes on"):
        begin(text_file, tmp_path / "out", tiny_folder, lambda _: None)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_ctrl_c_during_the_last_look_leaves_a_folder_to_go_on_with(tmp_path: Path, text_file, tiny_folder):
    whole = tune(text_file, tmp_path / "whole", tiny_folder, lr=1e-3)

    def interrupt(fact: object) -> None:
        if isinstance(fact, Looked) and fact.whole and fact.step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="can be used as it is"):
        begin(text_file, tmp_path / "out", tiny_folder, interrupt)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    adapt(out=tmp_path / "out", resume=True)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["heldout"] == whole["heldout"]


def test_an_adapter_is_merged_into_the_weights_it_was_trained_beside_alone(tmp_path: Path, text_file, tiny_folder):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    lora = {"lora.rank": 2}

    def change() -> None:
        tensors = load_file(model / "model.safetensors")
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})

    with pytest.raises(ModelError, match=r"its weights have changed while an adapter was trained .* --resume"):
        begin(text_file, tmp_path / "out", model, at_step(3, change), **lora)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    shutil.copy(tiny_folder / "model.safetensors", model)
    adapt(out=tmp_path / "out", resume=True)
    tune(text_file, tmp_path / "whole", tiny_folder, lr=1e-3, **lora)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_tokenizer_with_several_chat_templates_is_written_anew(tmp_path: Path, text_file, tiny_folder):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(model)
    with pytest.raises(Interrupted):
        begin(text_file, tmp_path / "out", model, at_step(1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    adapt(out=tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").exists()
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_full_disk_during_a_checkpoint_leaves_the_last_good_one(tmp_path: Path, text_file, tiny_folder):
    tune(text_file, tmp_path / "whole", tiny_folder, lr=1e-3, checkpoint_steps=2)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    fill = at_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)))
    try:
        with pytest.raises(RunError, match=r"checkpoint.safetensors: cannot be written: File too large"):
            begin(text_file, tmp_path / "out", tiny_folder, fill, **{"adapt.checkpoint_steps": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    facts: list[object] = []
    adapt(out=tmp_path / "out", resume=True, listen=facts.append)
    assert next(fact for fact in facts if isinstance(fact, Ready)).step == 2
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_full_disk_at_the_end_leaves_what_resume_needs(tmp_path: Path, text_file, tiny_folder):
    tune(text_file, tmp_path / "whole", tiny_folder, lr=1e-3)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def fill(fact: object) -> None:
        if isinstance(fact, Looked) and fact.whole and fact.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    try:
        with pytest.raises(RunError, match="cannot be written"):
            begin(text_file, tmp_path / "out", tiny_folder, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    adapt(out=tmp_path / "out", resume=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize("steps", [1, 4])
def test_a_training_that_runs_away_is_told_and_leaves_no_model(tmp_path: Path, text_file, tiny_folder, steps: int):
    with pytest.raises(ModelError, match=r"adapt.lr: the .* is no longer finite in step .*; train into a new folder"):
        tune(text_file, tmp_path / "out", tiny_folder, lr=1e18, tokens=512 * steps, eval_steps=1)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_changed_in_between_is_refused(tmp_path: Path, texts, text_file, tiny_folder):
    with pytest.raises(Stopped):
        begin(text_file, tmp_path / "out", tiny_folder, at_step(5, _stop))
    with pytest.raises(RunError, match=r"adapt.lr was 0.001 when this training began and is 0.1 now"):
        adapt(out=tmp_path / "out", settings={"adapt.lr": 0.1}, resume=True)
    text_file.write_text("\n\n".join(texts[1:]))
    with pytest.raises(RunError, match="not those that this training began with"):
        adapt(out=tmp_path / "out", resume=True)
    with pytest.raises(RunError, match="add --resume"):
        begin(text_file, tmp_path / "out", tiny_folder, _stop)


def _stop() -> None:
    raise Stopped


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("train", ["config.toml", "metrics.json"]),
        ("train", ["splits.json", "work/rows", "ledger.jsonl"]),
        ("sweep", ["sweep.toml", "splits.json"]),
    ],
)
def test_the_folder_of_another_command_is_left_as_it_is(command, files, tmp_path: Path, text_file, tiny_folder):
    for name in [".lock", *files]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=f"this folder belongs to `labeltune {command}`"):
        adapt(text_file, out=tmp_path / "out", model=str(tiny_folder), resume=True)
    with pytest.raises(RunError, match="choose another --out"):
        adapt(text_file, out=tmp_path / "out", model=str(tiny_folder))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_train_and_sweep_leave_an_adaptation_as_it_is(tmp_path: Path, text_file, tiny_folder, small):
    with pytest.raises(Stopped):
        begin(text_file, tmp_path / "out", tiny_folder, at_step(5, _stop))
    (tmp_path / "s.toml").write_text(
        f'data.train = "{small / "moods-train.jsonl"}"\nmodel.name = "mini"\n[sweep]\nseeds = 2\n'
    )
    for call in (
        lambda: train(tmp_path / "none.jsonl", out=tmp_path / "out", model=str(tiny_folder), resume=True),
        lambda: sweep(tmp_path / "s.toml", out=tmp_path / "out", resume=True),
    ):
        with pytest.raises(RunError, match="this folder belongs to `labeltune adapt`"):
            call()
    adapt(out=tmp_path / "out", resume=True)


def test_a_call_that_fails_removes_only_what_it_wrote(tmp_path: Path, tiny_folder):
    corpus = tmp_path / "out" / "work" / "corpus"
    corpus.mkdir(parents=True)
    (tmp_path / "out" / ".lock").touch()
    (corpus / "corpus.json").write_text("{}")
    with pytest.raises(DataError):
        adapt(tmp_path / "none.txt", out=tmp_path / "out", model=str(tiny_folder), resume=True)
    assert (corpus / "corpus.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("adapt.optimiser=muon",), ("lora.rank=4", "adapt.objective=mntp")])
def test_a_killed_training_goes_on_to_the_same_bits(settings, tmp_path: Path, text_file, tiny_folder):
    words = [text_file, "--model", tiny_folder, *(word for name in settings for word in ("--set", name))]
    words += [f"--set={name}={value}" for name, value in FAST.items()]
    words += ["--set", "adapt.checkpoint_steps=2", "--set", "adapt.epochs=20"]
    command = [sys.executable, "-m", "labeltune.cli", "adapt", *map(str, words)]
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, capture_output=True)
    killed = 0
    for wait in (0.3, 1.5):  # after the process has begun to write
        one = subprocess.Popen(
            [*command, "--out", tmp_path / "out", *(["--resume"] if killed else [])], stderr=subprocess.PIPE
        )
        while not (tmp_path / "out" / "log.jsonl").exists() and one.poll() is None:
            time.sleep(0.05)
        time.sleep(wait)
        one.kill()
        one.communicate()
        killed += one.returncode == -signal.SIGKILL
    assert killed
    subprocess.run([*command, "--out", tmp_path / "out", "--resume"], check=True, capture_output=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


# What is refused


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"adapt.objective": "clmm"}, SettingsError, r"adapt.objective: 'clmm' .* did you mean 'clm'"),
        ({"adapt.optimiser": "adam"}, SettingsError, r"did you mean 'adamw'"),
        ({"adapt.epoch": 2}, SettingsError, r"adapt.epoch: unknown setting; did you mean 'adapt.epochs'"),
        ({"adapt.context": 1000}, SettingsError, r"1000 is more than the 256 tokens"),
        ({"model.unmask": "all"}, SettingsError, r"would see the token it predicts"),
        ({"model.unmask": "first:9", "adapt.objective": "mntp"}, SettingsError, "outside the model"),
        ({"model.depth": 2}, SettingsError, r"model.depth: has no meaning"),
        ({"data.max_tokens": 9}, SettingsError, r"data.max_tokens: has no meaning"),
        ({"model.dtype": "fp16"}, SettingsError, "fp16 overflows"),
        ({"model.quantization": "nf4"}, SettingsError, "cannot be trained whole"),
        ({"lora.kind": "none"}, SettingsError, "is no adapter"),
        ({"lora.targets": ["q_prj"]}, SettingsError, "did you mean 'q_proj'"),
        ({"adapt.tokenizer": "x"}, SettingsError, "goes with adapt.from_config"),
        ({"adapt.from_config": "x"}, SettingsError, "names a model"),
        ({"model.name": "no/such/model/at/all"}, ModelError, "there is no folder"),
        ({"model.weights_sha256": "0"}, ModelError, "not those of the settings"),
        ({"adapt.texts": ["no.txt"]}, DataError, "no such file"),
        ({"adapt.heldout": "no.txt"}, DataError, "no such file"),
        ({"adapt.texts": []}, SettingsError, "no text is named"),
    ],
)
def test_bad_settings_are_told_and_leave_nothing_behind(settings, kind, said, tmp_path: Path, text_file, tiny_folder):
    with pytest.raises(kind, match=said):
        adapt(text_file, out=tmp_path / "out", model=str(tiny_folder), settings=FAST | settings)
    assert not (tmp_path / "out").exists()


def test_a_mask_token_beyond_the_model_is_told(tmp_path: Path, text_file, tiny_folder):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(model)
    settings = FAST | {"adapt.objective": "mntp"}
    with pytest.raises(ModelError, match=r"gives the token 266, and the model has 266 entries"):
        adapt(text_file, out=tmp_path / "out", model=str(model), settings=settings)


def test_a_fresh_model_without_a_tokenizer_or_a_config_is_told(tmp_path: Path, text_file, tiny_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"^/.*empty: /.*empty holds no tokenizer"):
        adapt(text_file, from_config=tiny_folder, tokenizer=empty, out=tmp_path / "out")
    (empty / "config.json").write_text("[]")
    with pytest.raises(SettingsError, match=r"no configuration of a causal language model \(it holds no object\)"):
        adapt(text_file, from_config=empty, tokenizer=tiny_folder, out=tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", bytes(range(256)) * 9])
def test_bad_text_is_told_and_leaves_nothing_behind(content, tmp_path: Path, tiny_folder):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError):
        adapt(tmp_path / "t.txt", out=tmp_path / "out", model=str(tiny_folder), settings=FAST)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path, text_file, tiny_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(RunError, match="not empty; choose another --out"):
        begin(text_file, tmp_path / "out", tiny_folder, _stop)
    with pytest.raises(RunError, match="this is a file"):
        begin(text_file, tmp_path / "out" / "mine", tiny_folder, _stop)
    with pytest.raises(RunError, match="nothing to go on with"):
        adapt(text_file, out=tmp_path / "none", resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_folder_has_one_writer(tmp_path: Path, text_file, tiny_folder):
    with lock(tmp_path / "out"), pytest.raises(RunError, match="another process"):
        begin(text_file, tmp_path / "out", tiny_folder, _stop)


@pytest.mark.parametrize("argument", [["--objective", "nonsense"], ["--set", "adapt.lr=fast"], []])
def test_the_command_says_what_is_wrong_in_one_sentence(argument, tmp_path: Path, text_file, monkeypatch, capsys):
    words = ["adapt", str(text_file), "--out", str(tmp_path / "out"), *argument]
    monkeypatch.setattr(sys, "argv", ["labeltune", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert said.startswith("error: ") and said.count("\n") == 1


def test_the_command_shows_the_way_and_prints_the_figures(tmp_path: Path, text_file, tiny_folder, monkeypatch, capsys):
    words = ["adapt", str(text_file), "--model", str(tiny_folder), "--heldout", "0.2"]
    words += [f"--set={name}={value}" for name, value in FAST.items()]
    for name, more in (("a", []), ("b", ["--json"])):
        monkeypatch.setattr(sys, "argv", ["labeltune", *words, "--out", str(tmp_path / name), *more])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        shown = capsys.readouterr()
        if more:
            assert json.loads(shown.out)["heldout"]["bits_per_byte"] > 0 and shown.err == ""
        else:
            assert "bits per byte" in shown.err and "tokens/s" in shown.err and "left" in shown.err


def test_every_error_is_ours(tmp_path: Path, text_file):
    """A folder of damaged weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(LabeltuneError):
        adapt(text_file, out=tmp_path / "out", model=str(folder), settings=FAST)


def test_mlm_trains_an_encoder_from_a_config_and_refuses_a_decoder(tmp_path: Path, text_file, tiny_folder):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 128, **sizes}))
    out = tmp_path / "encoder"
    settings = {"adapt.objective": "mlm", "adapt.epochs": 2, "adapt.context": 64, "adapt.threads": 1}
    adapt([text_file], from_config=str(config), tokenizer=str(tiny_folder), out=out, settings=settings)
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert type(model).__name__ == "BertForMaskedLM"
    figures = json.loads((out / "metrics.json").read_text())
    assert "bits_per_byte" not in json.dumps(figures)
    config.write_text(json.dumps({"model_type": "albert", **sizes}))
    with pytest.raises(ModelError, match="labeltune does not know albert as an encoder; choose an encoder"):
        adapt([text_file], from_config=str(config), tokenizer=str(tiny_folder), out=tmp_path / "no", settings=settings)
    with pytest.raises(ModelError, match="llama fills in no hidden token at its own place"):
        adapt([text_file], model=str(tiny_folder), out=tmp_path / "no", settings=settings)
