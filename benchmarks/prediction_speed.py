"""How many texts a second does each side label on a CPU, from texts to labels?

    python prediction_speed.py run    --data DATA --tokenizer TOKENIZER --work WORK [--sizes 15M 110M] [--texts sst2 …]
    python prediction_speed.py report --work WORK --out results/NAME --hardware "one line"

Sides: labeltune's `Predictor.predict`; the run's exports on onnxruntime and OpenVINO, as `--backend` takes them; a loop
over rows sorted by length, in batches of 32, each padded to its longest; transformers' `pipeline(batch_size=32)`, rows
as they come. All have the same adapter merged into their weights (`eval.merge`) and answer the same texts with the same
labels, which is asserted, by turns in one process. Finished turns stand in WORK/turns.jsonl. `--clock cpu --threads 1`
counts the CPU seconds of one thread, where a machine is busy.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import stock_trainer as stock
import torch
from cells import Cells
from material import SIZES, TEXTS, backbone, write_rows
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.utils import logging

from labeltune.bulk.backends import How
from labeltune.export.exporting import export
from labeltune.fitting import train
from labeltune.portions import portions
from labeltune.predict import Predictor, load
from labeltune.run import Run

BATCH = 32
BACKENDS = ("onnx", "openvino")
SIDES = ("labeltune", *BACKENDS, "sorted loop", "pipeline")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS = {"15M": {"livedoor": 64}, "110M": {"livedoor": 16, "sst2": 320, "phrases": 320, "ag_news": 320}}
"""Texts that are answered; 960 where nothing stands."""
Answer = Callable[[Sequence[str]], list[str]]


def trained(model: Path, kind: str, data: Path, work: Path) -> Run:
    """A run of a few steps, so that adapter and head are no longer what they were."""
    texts, (rows, dev) = TEXTS[kind], write_rows(kind, data, work)
    folder = work / f"run-{model.name}-{kind}"
    settings = {
        "model.unmask": "none",
        "lora.rank": 16,
        "train.lr": 3e-3,
        "train.steps": 4,
        "train.threads": torch.get_num_threads(),
        "train.device": "cpu",
        "data.max_tokens": texts.cap,
        "data.long": "truncate",
    }
    return train(
        rows, dev=dev, task=texts.task, model=str(model), out=folder, settings=settings, resume=folder.exists()
    )


def stock_model(run: Run, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The stock classifier with the run's adapter merged and the run's head."""
    names = dict(enumerate(run.labels.names))
    config = AutoConfig.from_pretrained(
        run.config.model.name, num_labels=len(names), pad_token_id=tokenizer.pad_token_id
    )
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}
    model = AutoModelForSequenceClassification.from_pretrained(run.config.model.name, config=config)
    model.model = peft.PeftModel.from_pretrained(model.model, run.folder / "adapter").merge_and_unload()
    with torch.no_grad():
        model.score.weight.copy_(load_file(run.folder / "head.safetensors")["head.weight"])
    return model.eval()


def sorted_loop(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cap: int) -> Answer:
    """Rows sorted by length, dynamically padded."""

    def answer(texts: Sequence[str]) -> list[str]:
        ids = tokenizer(list(texts), truncation=True, max_length=cap)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        labels = [""] * len(ids)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
                for row, number in zip(rows, model(**batch).logits.argmax(-1).tolist(), strict=True):
                    labels[row] = model.config.id2label[number]
        return labels

    return answer


def piped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cap: int) -> Answer:
    """transformers' pipeline."""
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")
    return lambda texts: [found["label"] for found in pipe(list(texts), truncation=True, max_length=cap)]


def graph(run: Run, backend: str, predictor: Predictor) -> Answer:
    """The run's export, made where it is not there."""
    if not (run.folder / "exports" / backend).exists():
        export(run.folder, backend)
    answering = How(run.folder, {"train.threads": torch.get_num_threads()}, backend=backend).load(run)

    def answer(texts: Sequence[str]) -> list[str]:
        cut = portions(predictor.examples(texts), predictor.encoder.config)
        return [str(row.answer["label"]) for portion in cut for row in answering.answered(portion)]

    return answer


def sides(run: Run, cap: int) -> dict[str, Answer]:
    tokenizer = stock.load_tokenizer(str(run.config.model.name))
    model, predictor = stock_model(run, tokenizer), load(run.folder, settings={"eval.merge": True})
    return {
        "labeltune": lambda texts: [str(found.label) for found in predictor.predict(texts)],
        **{name: graph(run, name, predictor) for name in BACKENDS},
        "sorted loop": sorted_loop(model, tokenizer, cap),
        "pipeline": piped(model, tokenizer, cap),
    }


def run(arguments: argparse.Namespace) -> None:
    """Every turn that is not finished yet."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    work, data, tokenizer = (Path(getattr(arguments, name)).resolve() for name in ("work", "data", "tokenizer"))
    work.mkdir(parents=True, exist_ok=True)
    turns = Cells(work / "turns.jsonl")
    for size in arguments.sizes:
        model = backbone(size, tokenizer, work)
        for kind in arguments.texts:
            how = {"threads": arguments.threads, "clock": arguments.clock}
            if not turns.find(size=size, text=kind, **how):
                rows = arguments.rows or ROWS.get(size, {}).get(kind, 960)
                texts = [row.text for row in stock.read_rows(str(write_rows(kind, data, work)[0]))][:rows]
                answers = sides(trained(model, kind, data, work), TEXTS[kind].cap)
                compare(turns, {"size": size, "text": kind, **how}, texts, answers, arguments.repeats)


def compare(turns: Cells, cell: dict[str, Any], texts: Sequence[str], answers: dict[str, Answer], repeats: int) -> None:
    """The sides by turns, after a few texts to warm up."""
    for answer in answers.values():
        answer(texts[:BATCH])
    labels: dict[str, list[str]] = {}
    found: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for side in sorted(answers, reverse=repeat % 2 == 1):
            began = CLOCKS[cell["clock"]]()
            labels[side] = answers[side](texts)
            rate = len(texts) / (CLOCKS[cell["clock"]]() - began)
            found.append({**cell, "side": side, "repeat": repeat, "rows": len(texts), "texts_per_second": rate})
            print(*cell.values(), side, repeat, f"{rate:.1f} texts/s", flush=True)
    for side, given in labels.items():
        different = sum(a != b for a, b in zip(given, labels["labeltune"], strict=True))
        if different:
            raise SystemExit(f"{cell}: {side} gives {different} of {len(texts)} texts another label")
    for turn in found:  # only what answered alike, and a cell as a whole
        turns.add(turn)


def report(arguments: argparse.Namespace) -> None:
    """A table as Markdown, everything as JSON."""
    turns = Cells(Path(arguments.work) / "turns.jsonl")
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "onnxruntime", "openvino")}
    how = " and ".join(sorted({f"{row['threads']} threads by the {row['clock']} clock" for row in turns.rows}))
    lines = [
        "# Prediction speed",
        "",
        f"{arguments.hardware}; {how}, fp32; Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
        "Texts a second from texts to labels, medians of the repeats; behind the rate of each of ours, the medians of "
        "its ratios to the loop and to the pipeline in the same repeat. The same labels on all sides. How to repeat "
        "it: `benchmarks/README.md`.",
        "",
        "| backbone | text | texts | sorted loop | pipeline | labeltune, torch | onnx | openvino |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        for kind, texts in TEXTS.items():
            found = turns.find(size=size, text=kind)
            rates = {
                s: [r["texts_per_second"] for r in found if r["side"] == s]
                for s in dict.fromkeys(r["side"] for r in found)
            }
            if rates:
                shown = [f"{statistics.median(rates[side]):.1f}" for side in SIDES[-2:]]
                shown += [f"{statistics.median(rates[side]):.1f} ({against(rates, side)})" for side in SIDES[:-2]]
                lines.append("| " + " | ".join([size, texts.title, str(found[0]["rows"]), *shown]) + " |")
    out = Path(arguments.out)
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    facts = {"hardware": arguments.hardware, **versions, "turns": turns.rows}
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def against(rates: dict[str, list[float]], side: str) -> str:
    """The median ratios of a side to the loop and to the pipeline."""
    return ", ".join(
        f"{statistics.median(a / b for a, b in zip(rates[side], rates[other], strict=True)):.2f}×"
        for other in SIDES[-2:]
    )


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--data", required=True, help="folder with sst/, ag_news/, wnut17/ and livedoor/")
    running.add_argument("--tokenizer", required=True, help="folder with a Llama tokenizer")
    running.add_argument("--work", required=True, help="folder for what is finished")
    kinds = [kind for kind, texts in TEXTS.items() if texts.task == "classification"]
    running.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    running.add_argument("--texts", nargs="*", default=kinds, choices=kinds)
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--clock", default="wall", choices=list(CLOCKS))
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--rows", type=int, help="texts to answer")
    running.set_defaults(do=run)
    reporting = commands.add_parser("report")
    reporting.add_argument("--work", required=True)
    reporting.add_argument("--out", required=True, help="path without suffix; .md and .json are written")
    reporting.add_argument("--hardware", required=True, help="one line on the machine")
    reporting.set_defaults(do=report)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
