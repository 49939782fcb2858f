"""How far is a training step from its own matrix products? (step - products) / step, and where the rest goes.

    python limit.py --data DATA --tokenizer TOKENIZER --work WORK --out results/NAME --hardware "one line"

The products of one forward and backward pass over 1,024 tokens (linear layers, adapters, head; attention's kernel is no
product here, and counts as rest) are recorded as they happen and done again alone, on the same tensors. Both are timed
by turns, in CPU seconds of one thread; a profile says what the rest is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stock_trainer as stock
import torch
from cells import Cells
from material import SIZES, TEXTS, backbone, llama, write_rows
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from labeltune.data.batches import pack
from labeltune.keys import Key
from labeltune.model.backbone import wrap
from labeltune.model.member import LabelModel, build
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.schema import Batch, Encoded

TOKENS, REPEATS = 1024, 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # the frozen layers' where oneDNN multiplies
    PRODUCTS.add(torch.ops.mkldnn._linear_pointwise.default)
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear"),
    "attention kernel": ("aten::_scaled_dot_product",),
    "multiply, add (norms, rotation, gates, residuals)": (
        "aten::mul",
        "aten::add",
        "aten::sub",
        "aten::neg",
        "aten::div",
    ),
    "gate's silu": ("aten::silu",),
    "dropout": ("aten::where", "aten::bitwise", "aten::ge"),
    "copies, joins, zeros": ("aten::cat", "aten::copy_", "aten::fill_", "aten::zero", "aten::index"),
    "sums, roots": ("aten::sum", "aten::mean", "aten::pow", "aten::rsqrt", "aten::linalg", "aten::_softmax"),
}
OTHER = "views, autograd, Python"


class Recorder(TorchDispatchMode):
    """Keeps each product with the tensors that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_of(lengths: list[int], vocabulary: int) -> Batch:
    """Random tokens in texts of these lengths, a label each."""
    random = np.random.default_rng(0)

    def row(n: int) -> Encoded:
        one, whole = np.zeros(1, np.int32), np.array([n], np.int32)
        tokens = random.integers(3, vocabulary, n).astype(np.int32)
        return Encoded(tokens, whole, one, whole, whole, one, np.array([[0, 1]], np.int32), random.integers(0, 2, 1))

    return pack([[(number, row(length)) for number, length in enumerate(lengths)]])


def lengths_of(kind: str, model: Path, data: Path, work: Path) -> list[int]:
    """The lengths of the first texts that make up 1,024 tokens, the shortest first, the last one cut."""
    rows = stock.read_rows(str(write_rows(kind, data, work)[0]))
    tokenizer = stock.load_tokenizer(str(model))
    found = tokenizer([row.text for row in rows], truncation=True, max_length=TEXTS[kind].cap)["input_ids"]
    lengths: list[int] = []
    for ids in found:
        lengths.append(min(len(ids), TOKENS - sum(lengths)))
        if sum(lengths) == TOKENS:
            break
    return sorted(lengths)


def measure(size: str, dtype: str, lengths: list[int], vocabulary: int) -> dict[str, Any]:
    """Seconds of a pass and of its products, and the shares of the profile."""
    torch.set_num_threads(1)
    body = wrap(llama(SIZES[size], vocabulary).to(DTYPES[dtype]))
    words = {"task_unmask": "none", "task_pooling": "last", "task_bias": False, "width": 2, "key": Key.of(1)}
    member = build(body, ModelConfig(), LoraConfig(rank=16), HeadConfig(), **words)
    model, batch, key = LabelModel(body, [member]), batch_of(lengths, vocabulary), Key.of(2)

    def step() -> None:
        for parameter in member.parameters():
            parameter.grad = None
        (logits,) = model(batch, [key])
        torch.nn.functional.cross_entropy(logits, batch.labels[0]).backward()

    step()
    with Recorder() as recorder:
        step()

    def products() -> None:
        with torch.no_grad():
            for func, args, words in recorder.calls:
                func(*args, **words)

    products()
    times: dict[str, list[float]] = {"step": [], "products": []}
    for _ in range(REPEATS):
        for name, run in (("step", step), ("products", products)):
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    both = {name: statistics.median(values) for name, values in times.items()}
    share = statistics.median(1 - p / s for s, p in zip(times["step"], times["products"], strict=True))
    return {**both, "count": len(recorder.calls), "rest": share, "shares": shares(profiled), "documents": len(lengths)}


def shares(profiled: Any) -> dict[str, float]:
    """Each group's part of the profile; what no group names is dispatch, autograd and Python."""
    events = [(event.key, event.self_cpu_time_total) for event in profiled.key_averages()]
    total = sum(spent for _, spent in events)
    found = dict.fromkeys((*GROUPS, OTHER), 0.0)
    for key, spent in events:  # the first group that names it has it: `aten::add` begins `aten::addmm`, too
        name = next((name for name, prefixes in GROUPS.items() if key.startswith(prefixes)), OTHER)
        found[name] += spent / total
    return found


def main() -> None:
    """Read the command, measure what is not finished, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("data", "tokenizer", "work", "out", "hardware"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--texts", nargs="*", default=["sst2"], choices=list(TEXTS))
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    arguments = parser.parse_args()
    work, data, tokenizer = (Path(getattr(arguments, name)).resolve() for name in ("work", "data", "tokenizer"))
    work.mkdir(parents=True, exist_ok=True)
    cells = Cells(work / "limit.jsonl")
    for size in arguments.sizes:
        model = backbone(size, tokenizer, work)
        for kind in arguments.texts:
            lengths = lengths_of(kind, model, data, work)
            for dtype in arguments.dtypes:
                facts = {"size": size, "text": kind, "dtype": dtype}
                if not cells.find(**facts):
                    cells.add({**facts, **measure(size, dtype, lengths, 32000)})
                    print(cells.rows[-1], flush=True)
    write(cells, Path(arguments.out), arguments.hardware)


def write(cells: Cells, out: Path, hardware: str) -> None:
    """Tables as Markdown, everything as JSON."""
    lines = [
        "# The physical limit",
        "",
        f"{hardware}; torch {torch.__version__}. One forward and backward pass over {TOKENS:,} tokens, rank 16 on "
        "attention, dropout 0.05, and its matrix products done again alone; median CPU milliseconds of one thread.",
        "",
        "| backbone | text | dtype | step, ms | products, ms | rest of the step |",
        "|---|---|---|---|---|---|",
    ]
    for row in cells.rows:
        facts = [row["size"], TEXTS[row["text"]].title, row["dtype"]]
        times = [f"{1000 * row[name]:.0f}" for name in ("step", "products")]
        lines.append("| " + " | ".join([*facts, *times, f"{100 * row['rest']:.0f} %"]) + " |")
    names = [f"{row['size']} {row['dtype']} {row['text']}" for row in cells.rows]
    lines += ["", "Where the step's time goes, by the profile, in percent:", ""]
    lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for group in (*GROUPS, OTHER):
        lines.append(f"| {group} | " + " | ".join(f"{100 * row['shares'][group]:.0f}" for row in cells.rows) + " |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    out.with_suffix(".json").write_text(json.dumps({"hardware": hardware, "cells": cells.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
