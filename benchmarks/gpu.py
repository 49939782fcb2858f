"""One GPU, one call, under ten minutes: rows a second beside stock loops, FLOPs used, and peak memory.

    python gpu.py --out results/gpu_NAME [--shapes 1B 7B 13B] [--minutes 9]
    python gpu.py --out FOLDER/toy --toy          the same on a CPU with toy shapes, in seconds

Needs a checkout of labeltune beside it, torch, transformers and peft; nothing is downloaded. Weights are random, of the
true shapes, bf16. Sides: labeltune; A, stock model + PEFT, every row padded to the cap; B, the same, rows of like
length together, padded to the longest of the batch. A and B are plain loops without a Trainer, which is kinder to them
than the recipes are. Each finished question is written at once, so a call that is cut off leaves what it had.

Shapes: N tokens of a pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

from labeltune.data.batches import pack
from labeltune.keys import Key
from labeltune.model.backbone import wrap
from labeltune.model.member import LabelModel, build
from labeltune.model.recording import SIGHTINGS
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.schema import Batch, Encoded

BEGAN = time.monotonic()
GIB = 2**30
NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SHAPES = {
    "1B": (2048, 16, 32, 8, 8192),
    "7B": (4096, 32, 32, 32, 11008),
    "13B": (5120, 40, 40, 40, 13824),
}
TOY = {"toy": (32, 2, 4, 2, 48)}
BUDGETS = {"1B": 16384, "7B": 8192, "13B": 4096, "toy": 256}
"""Tokens of a pass of 512-token texts; without checkpointing about 60 GiB at most."""
PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 FLOP a second by the datasheets."""
RANK, CAP, BATCH, MANY, VOCABULARY = 16, 64, 8, 128, 32000
Step = Callable[[], int]  # one optimiser step; returns the rows that it trained on


# Rows


def short_lengths(rows: int) -> list[int]:
    """As long as SST-2's sentences in Llama 2 tokens: 26 on average, 3 to 64."""
    return np.random.default_rng(0).gamma(4.2, 26 / 4.2, rows).round().clip(3, CAP).astype(int).tolist()


def row(length: int, random: np.random.Generator) -> Encoded:
    """Random tokens with one label."""
    zero, whole = np.zeros(1, np.int32), np.array([length], np.int32)
    tokens = random.integers(3, VOCABULARY, length).astype(np.int32)
    return Encoded(tokens, whole, zero, whole, whole, zero, np.array([[0, 1]], np.int32), random.integers(0, 2, 1))


def batches(lengths: Sequence[int], rows: int, *, grouped: bool = False) -> list[list[tuple[int, Encoded]]]:
    """Steps of so many rows; grouped: rows of like length together, the steps in the order of a shuffle."""
    random = np.random.default_rng(1)
    if grouped:
        steps = np.array_split(np.sort(np.array(lengths)), -(-len(lengths) // rows))
        lengths = [int(length) for step in random.permutation(len(steps)) for length in steps[step]]
    made = [(number, row(length, random)) for number, length in enumerate(lengths)]
    return [made[start : start + rows] for start in range(0, len(made), rows)]


# Sides


def adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=parameters[0].is_cuda)


def ours(model: LabelModel, parts: list[list[tuple[int, Encoded]]]) -> Step:
    """One packed pass and an AdamW step."""
    device, parameters = model.backbone.device, [p for member in model.members for p in member.parameters()]
    optimiser, feed, key = adamw(parameters), _endless(parts), Key.of(1)

    def step() -> int:
        rows = next(feed)
        batch: Batch = pack([rows], device)
        (logits,) = model(batch, [key])
        nn.functional.cross_entropy(logits, batch.labels[0]).backward()
        optimiser.step()
        optimiser.zero_grad()
        return len(rows)

    return step


def theirs(model: nn.Module, parts: list[list[tuple[int, Encoded]]], width: int | None) -> Step:
    """One padded pass and an AdamW step; width: of every row, or None for the longest of the batch."""
    device = next(model.parameters()).device
    optimiser, feed = adamw([p for p in model.parameters() if p.requires_grad]), _endless(parts)

    def step() -> int:
        rows = next(feed)
        long = width or max(len(encoded.tokens) for _, encoded in rows)
        ids, mask = torch.zeros(len(rows), long, dtype=torch.long), torch.zeros(len(rows), long, dtype=torch.long)
        for place, (_, encoded) in enumerate(rows):
            ids[place, : len(encoded.tokens)] = torch.from_numpy(encoded.tokens.astype(np.int64))
            mask[place, : len(encoded.tokens)] = 1
        labels = torch.tensor([int(encoded.labels[0]) for _, encoded in rows])
        loss = model(input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return len(rows)

    return step


def _endless(parts: list[list[tuple[int, Encoded]]]) -> Iterator[list[tuple[int, Encoded]]]:
    while True:
        yield from parts


def together(model: LabelModel, parts: list[list[tuple[int, Encoded]]]) -> Step:
    """One packed pass of all members, each with rows of its own, and an AdamW step."""
    device, parameters = model.backbone.device, [p for member in model.members for p in member.parameters()]
    feeds = [_endless(parts[k % len(parts) :] + parts[: k % len(parts)]) for k in range(len(model.members))]
    optimiser, keys = adamw(parameters), [Key.of(k) for k in range(len(model.members))]

    def step() -> int:
        rows = [next(feed) for feed in feeds]
        batch: Batch = pack(rows, device)
        logits = model(batch, keys)
        losses = [nn.functional.cross_entropy(mine, labels) for mine, labels in zip(logits, batch.labels, strict=True)]
        torch.stack(losses).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        return sum(map(len, rows))

    return step


def label_model(bench: Bench, body: LlamaModel, *, checkpointing: bool = False, members: int = 1) -> LabelModel:
    backbone = wrap(body, checkpointing=checkpointing)
    backbone.records = backbone.records and bench.records
    words = {"task_unmask": "none", "task_pooling": "last", "task_bias": False, "width": 2, "key": Key.of(1)}
    made = [build(backbone, ModelConfig(), LoraConfig(rank=RANK), HeadConfig(), **words) for _ in range(members)]
    return LabelModel(backbone, made)


# Measuring


class Bench:
    """Where it runs, until when, and what was found."""

    def __init__(self, out: Path, device: str, minutes: float, *, records: bool = True) -> None:
        self.out, self.device, self.until = out, torch.device(device), BEGAN + 60 * minutes
        self.records = records
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        name = torch.cuda.get_device_name() if self.cuda else "CPU"
        peak = next((flops for part, flops in PEAKS.items() if part in name), None)
        self.facts: dict[str, Any] = {"device": name, "torch": torch.__version__, "datasheet_flops": peak, "found": []}

    def ask(self, question: str, shape: str, answer: Callable[[], dict[str, Any]]) -> None:
        """One question, written at once; out of memory and out of time are answers too."""
        found: dict[str, Any]
        if time.monotonic() > self.until:
            found = {"left_out": "no time"}
        else:
            self.clear()
            try:
                found = answer()
            except torch.OutOfMemoryError:
                found = {"left_out": "out of memory"}
            except RuntimeError as error:
                found = {"left_out": f"failed: {error}".split("\n")[0]}
        self.facts["found"].append({"question": question, "shape": shape, **found})
        print(json.dumps(self.facts["found"][-1]), flush=True)
        self.out.with_suffix(".json").write_text(json.dumps(self.facts, indent=1) + "\n")
        self.out.with_suffix(".md").write_text(markdown(self.facts))

    def clear(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else None

    def seconds(self, run: Callable[[], object], times: int) -> float:
        """Seconds of `times` calls."""
        self.wait()
        began = time.monotonic()
        for _ in range(times):
            run()
        self.wait()
        return time.monotonic() - began

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    @contextmanager
    def built(self) -> Iterator[None]:
        """Weights made in place, in the device's dtype."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                yield
        finally:
            torch.set_default_dtype(before)


def configuration(shape: str) -> LlamaConfig:
    sizes = dict(zip(NAMES, {**SHAPES, **TOY}[shape], strict=True))
    return LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2048, pad_token_id=0, num_labels=2, **sizes)


def gemm(bench: Bench) -> dict[str, Any]:
    """FLOP a second of one large square product."""
    side = 8192 if bench.cuda else 256
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    bench.seconds(lambda: a @ b, 5)
    best = min(bench.seconds(lambda: a @ b, 10) for _ in range(3)) / 10
    return {"flops": 2 * side**3 / best}


def speed(bench: Bench, shape: str, rows: int, *, repeats: int = 2, steps: int = 16) -> dict[str, Any]:
    """Rows a second of the three sides, one after the other on the same weights, in steps of `rows` short texts."""
    with bench.built():
        stock = LlamaForSequenceClassification(configuration(shape))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    wanted = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=RANK, lora_dropout=0.05, target_modules=targets)
    lengths = short_lengths(rows * steps)
    parts = batches(lengths, rows)
    tuned = peft.get_peft_model(stock, wanted)
    rates = {
        "A": _rates(bench, theirs(tuned, parts, CAP), repeats, steps),
        "B": _rates(bench, theirs(tuned, batches(lengths, rows, grouped=True), None), repeats, steps),
    }
    model = label_model(bench, tuned.unload().model)
    step = ours(model, parts)
    rates = {"labeltune": _rates(bench, step, repeats, steps, rounds=SIGHTINGS), **rates}
    return {
        "rows": rows,
        "rows_per_second": rates,
        "against_A": rates["labeltune"] / rates["A"],
        "against_B": rates["labeltune"] / rates["B"],
        "peak_gib": bench.peak_gib(),
        **launches(bench, model, step),
    }


def _rates(bench: Bench, step: Step, repeats: int, steps: int, rounds: int = 1) -> float:
    """Rows a second, the median of some repeats, after rounds to warm up; in the third labeltune records its passes."""
    for _ in range(rounds):
        rows = sum(step() for _ in range(steps))
    return statistics.median(rows / bench.seconds(step, steps) for _ in range(repeats))


def launches(bench: Bench, model: LabelModel, step: Step, steps: int = 4) -> dict[str, Any]:
    """What a step costs, recorded and pass by pass: launches, milliseconds of its kernels, and of the clock."""
    if not bench.cuda:
        return {}
    found: dict[str, Any] = {}
    for way, records in (("recorded", bench.records), ("not_recorded", False)):
        model.backbone.records = records
        step()
        spent = bench.seconds(step, steps) / steps
        ran = profiled(bench, step)
        found[way] = {"step_ms": 1e3 * spent, "kernels_ms": sum(ms for _, ms in ran), "kernels": len(ran)}
    return found


def profiled(bench: Bench, step: Step) -> list[tuple[str, float]]:
    """The kernels of one step, by name, with milliseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        bench.seconds(step, 1)
    ran = [each for each in seen.events() if each.device_type == torch.autograd.DeviceType.CUDA]
    return [(each.name, each.device_time / 1e3) for each in ran]


def sweeping(bench: Bench, shape: str, members: int = 12, repeats: int = 2, steps: int = 6) -> dict[str, Any]:
    """Rows a second of twelve trials in one pass and of one trial alone, eight short texts each, and peak memory."""
    with bench.built():
        body = LlamaModel(configuration(shape))
    parts = batches(short_lengths(BATCH * steps), BATCH)
    weights = torch.cuda.memory_allocated() / GIB if bench.cuda else 0.0
    found: dict[int, tuple[float, float]] = {}
    for count in (1, members):
        model = label_model(bench, body, members=count)
        bench.clear()
        rate = _rates(bench, together(model, parts), repeats, steps, rounds=SIGHTINGS + 1)
        found[count] = rate, bench.peak_gib() or 0.0
        model.detach()
    bound = weights + 1.1 * members * (found[1][1] - weights)
    return {
        "members": members,
        "rows_per_second": {"together": found[members][0], "alone": found[1][0]},
        "against_alone": found[members][0] / found[1][0],
        "peak_gib": found[members][1],
        "backbone_gib": weights,
        "bound_gib": bound,
    }


def utilisation(bench: Bench, shape: str, checkpointing: bool) -> dict[str, Any]:
    """FLOP a second of 512-token texts in passes of the shape's budget, and what that is of both peaks."""
    began = time.monotonic()
    with bench.built():
        body = LlamaModel(configuration(shape))
    model = label_model(bench, body, checkpointing=checkpointing)
    long = 512 if shape != "toy" else 64
    step = ours(model, batches([long] * (BUDGETS[shape] // long), BUDGETS[shape] // long))
    step()
    bench.wait()
    first = time.monotonic() - began
    spent = statistics.median(bench.seconds(step, 3) / 3 for _ in range(3))
    config = body.config
    linear = sum(p.numel() for p in body.layers.parameters() if p.ndim == 2)
    passes = 6 if checkpointing else 4
    square = (passes + 2) * long * config.hidden_size * config.num_hidden_layers  # causal: half; backward twice forward
    flops = BUDGETS[shape] * (passes * linear + square) / spent
    measured = next((each["flops"] for each in bench.facts["found"] if each["question"] == "GEMM peak"), None)
    sheet = bench.facts["datasheet_flops"]
    alone = products(bench, body, BUDGETS[shape], passes // 2)
    return {
        "checkpointing": checkpointing,
        "step_ms": 1e3 * spent,
        "products_ms": 1e3 * alone,
        "kernels_ms": kernels(bench, step),
        "tokens_per_second": BUDGETS[shape] / spent,
        "flops": flops,
        "of_datasheet": flops / sheet if sheet else None,
        "of_gemm": flops / measured if measured else None,
        "seconds_to_first_step": first,
        "peak_gib": bench.peak_gib(),
    }


def products(bench: Bench, body: LlamaModel, tokens: int, passes: int) -> float:
    """Seconds of a step's large products alone, on random data: every layer's matrices, so many times."""
    sizes = [p.shape for p in body.layers[0].parameters() if p.ndim == 2]
    weights = [torch.randn(size, device=bench.device, dtype=bench.dtype) for size in sizes]
    rows = {size[1]: torch.randn(tokens, size[1], device=bench.device, dtype=bench.dtype) for size in sizes}

    def layers() -> None:
        for _ in range(passes * len(body.layers)):
            for weight in weights:
                rows[weight.shape[1]] @ weight.T

    layers()
    return statistics.median(bench.seconds(layers, 1) for _ in range(3))


def kernels(bench: Bench, step: Step, most: int = 40) -> dict[str, float]:
    """Milliseconds of a step's kernels by name, the longest first."""
    spent: dict[str, float] = {}
    for name, milliseconds in profiled(bench, step) if bench.cuda else ():
        spent[name[:160]] = spent.get(name[:160], 0.0) + milliseconds
    return dict(sorted(spent.items(), key=lambda pair: -pair[1])[:most])


def memory(
    bench: Bench, shape: str, rows: int, long: int, *, checkpointing: bool = False, bits: int = 16
) -> dict[str, Any]:
    """GiB of three steps of a setting of the papers."""
    setting = {"rows": rows, "tokens": long, "checkpointing": checkpointing, "bits": bits}
    if bits < 16 and importlib.util.find_spec("bitsandbytes") is None:
        return {**setting, "left_out": "bitsandbytes is not installed"}
    body = _quantised(bench, shape, bits) if bits < 16 else _plain(bench, shape)
    bench.clear()
    bench.seconds(ours(label_model(bench, body, checkpointing=checkpointing), batches([long] * rows, rows)), 3)
    return {**setting, "peak_gib": bench.peak_gib()}


def _plain(bench: Bench, shape: str) -> LlamaModel:
    with bench.built():
        return LlamaModel(configuration(shape))


def _quantised(bench: Bench, shape: str, bits: int) -> LlamaModel:
    """Random weights in 4 or 8 bits, made layer by layer, so that the whole never stands in 16."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    with torch.device("meta"):
        body = LlamaModel(configuration(shape))
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.Linear):
            sizes = (module.in_features, module.out_features)
            numbers = torch.randn(*reversed(sizes), device=bench.device, dtype=torch.bfloat16).mul_(0.02).cpu()
            with torch.device("meta"):
                if bits == 4:
                    made = Linear4bit(*sizes, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
                else:
                    made = Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            if bits == 4:
                made.weight = Params4bit(numbers, requires_grad=False, quant_type="nf4", module=made)
            else:
                made.weight = Int8Params(numbers, requires_grad=False, has_fp16_weights=False)
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, made.to(bench.device))
    for module in body.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.is_meta:
                made = torch.ones(weight.shape, device=bench.device, dtype=torch.bfloat16)
                module.register_parameter(name, nn.Parameter(made.normal_(0, 0.02) if made.ndim > 1 else made))
    body.rotary_emb = type(body.rotary_emb)(body.config).to(bench.device)
    return body


LONG = ("question", "shape", "kernels_ms")
"""What the table shows otherwise, or leaves to the JSON file."""


def markdown(facts: dict[str, Any]) -> str:
    """A table of whatever was found."""
    lines = [f"# {facts['device']}, torch {facts['torch']}", ""]
    if facts["datasheet_flops"]:
        lines += [f"Datasheet: {facts['datasheet_flops'] / 1e12:.0f} dense bf16 TFLOP/s.", ""]
    lines += ["| question | shape | found |", "|---|---|---|"]
    for each in facts["found"]:
        found = ", ".join(_shown(name, value) for name, value in each.items() if name not in LONG)
        lines.append(f"| {each['question']} | {each['shape']} | {found} |")
    return "\n".join(lines) + "\n"


def _shown(name: str, value: Any) -> str:
    if name == "flops":
        return f"{value / 1e12:.4g} TFLOP/s"
    if isinstance(value, dict):
        return ", ".join(_shown(f"{name} {key}", each) for key, each in value.items())
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


def main(words: Sequence[str] | None = None) -> None:
    """Ask every question, the most wanted first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="path without suffix; .md and .json are written")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--minutes", type=float, default=9, help="no question is begun later")
    parser.add_argument("--only", nargs="*", default=[], help="the first word of the questions to ask (speed, MFU …)")
    parser.add_argument("--toy", action="store_true", help="toy shapes on a CPU")
    parser.add_argument("--no-recording", action="store_true", help="labeltune without recorded passes")
    arguments = parser.parse_args(words)
    if not (arguments.toy or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --toy runs on a CPU")
    bench = Bench(
        Path(arguments.out), "cpu" if arguments.toy else "cuda", arguments.minutes, records=not arguments.no_recording
    )
    shapes = list(TOY) if arguments.toy else arguments.shapes
    bench.ask("GEMM peak", "", lambda: gemm(bench))
    for shape in sorted(shapes, key=lambda each: each != "7B"):
        for question, answer in questions(bench, shape):
            if not arguments.only or re.match(r"\w+", question)[0] in arguments.only:
                bench.ask(question, shape, answer)


def questions(bench: Bench, shape: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is asked of a shape: everything of 7B, the memory of 13B, the speed of 1B."""
    if shape != "13B":
        yield "speed, short texts", lambda: speed(bench, shape, BATCH)
    if shape in ("7B", "toy"):
        yield "sweep, short texts, 8 rows each", lambda: sweeping(bench, shape)
        yield "speed, short texts", lambda: speed(bench, shape, MANY, steps=4)
    if shape != "13B":
        yield "MFU, 512-token texts", lambda: utilisation(bench, shape, False)
        yield "MFU, 512-token texts", lambda: utilisation(bench, shape, True)
    if shape != "1B":
        yield "memory", lambda: memory(bench, shape, 8, 64)
        yield "memory", lambda: memory(bench, shape, 32, 512, checkpointing=True)
        yield "memory", lambda: memory(bench, shape, 8, 64, bits=4)
        yield "memory", lambda: memory(bench, shape, 8, 64, bits=8)


if __name__ == "__main__":
    main()
