"""Train the mini backbone from scratch: next-token prediction over one shuffled text corpus.

    python pretraining/pretrain.py CORPUS.txt.xz --heldout HELDOUT.txt.xz --tokenizer FOLDER --out FOLDER --tokens 12e6
    python pretraining/pretrain.py … --device cuda --bf16 --compile --rows 64 --length 512 --minutes 5
    python pretraining/pretrain.py … --resume --tokens 50e6 --decay-tokens 20e6    # from the checkpoint
    python pretraining/pretrain.py … --start FOLDER --seen 4.2e6    # from weights alone, after the text they have read

The learning rate warms up, stays, and falls linearly to zero over the last `--decay-tokens`; a run without decay can go
on for as long as anyone likes, and be decayed from any checkpoint. Matrices are trained by Muon, everything else by
AdamW. Documents are joined by the end-of-text token and cut into rows of `--length` tokens. The result is a plain
Hugging Face folder in bf16; `state.pt` beside it holds what `--resume` needs.
"""

import argparse
import hashlib
import json
import lzma
import math
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

ARCHITECTURE = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
MATRIX_LR, OTHER_LR = 8e-3, 4e-3
WARMUP_STEPS = 100
FIXED = ("rows", "length", "seed")
"""Options that say which text a step reads: a run goes on with its own."""
PACING = (50, 350)
"""Steps at which a run with --minutes looks at its speed."""


def encode(corpus: Path, tokenizer: PreTrainedTokenizerBase, cache: Path) -> np.ndarray:
    """The corpus as one stream of token ids (uint16), each document opened by the end-of-text token.

    cache: where it is kept; the file's name says of which text and tokenizer.
    """
    made_of = hashlib.sha256(corpus.read_bytes() + tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:12]
    cache = cache.with_name(f"{cache.stem}-{made_of}.npy")
    if not cache.exists():
        with lzma.open(corpus, "rt", encoding="utf-8") as text:
            documents = text.read().strip().split("\n\n")
        pieces = []
        for start in range(0, len(documents), 4096):
            for ids in tokenizer(documents[start : start + 4096], verbose=False)["input_ids"]:
                pieces.append(np.array(ids, dtype=np.uint16))
        partial = cache.with_name(f".partial-{cache.name}")
        np.save(partial, np.concatenate(pieces))
        partial.replace(cache)
    return np.load(cache, mmap_mode="r")


@lru_cache(maxsize=2)
def order(total: int, seed: int, epoch: int) -> np.ndarray:
    """Where the rows of an epoch stand; the first one reads the corpus, which is shuffled, as it is."""
    return np.random.default_rng([seed, epoch]).permutation(total) if epoch else np.arange(total)


def rows(stream: torch.Tensor, step: int, count: int, length: int, seed: int) -> torch.Tensor:
    """Rows of one step as (count, length + 1) ids: a fresh permutation of all rows in each epoch, by address alone.

    Each epoch but the first cuts the text elsewhere.
    """
    total = (len(stream) - 1) // length - 1
    places = []
    for index in range(step * count, (step + 1) * count):
        epoch, place = divmod(index, total)
        places.append(int(order(total, seed, epoch)[place]) * length + epoch * 97 % length)
    starts = torch.tensor(places, device=stream.device)
    return stream[starts[:, None] + torch.arange(length + 1, device=stream.device)].long()


@torch.no_grad()
def bits_per_byte(
    model: LlamaForCausalLM, heldout: torch.Tensor, size: int, length: int, limit: int | None = None
) -> float:
    """Held-out cross-entropy in bits per byte of text, in windows of `length` with half of it as context.

    Every token is predicted once; the first half of a window only serves as context, but in the first window.
    """
    model.eval()
    end = len(heldout) if limit is None else min(limit, len(heldout))
    half = min(length // 2, end - 1)
    full = torch.arange(half, max(end - half, half), half)  # where whole windows begin to predict
    around, done = torch.arange(-half, half + 1), half * (len(full) + 1)
    parts = [(heldout[None, : half + 1], half)]
    for starts in full.split(32) if len(full) else ():
        parts.append((heldout[(starts[:, None] + around).to(heldout.device)], half))
    if done < end - 1:
        parts.append((heldout[None, done - half : end], end - 1 - done))
    nats = 0.0
    for windows, new in parts:
        logits = model(input_ids=windows[:, :-1].long(), logits_to_keep=new).logits.float()
        nats += functional.cross_entropy(logits.mT, windows[:, -new:].long(), reduction="sum").item()
    model.train()
    return nats / math.log(2) / (size * (end - 1) / (len(heldout) - 1))


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations (Jordan et al. 2024), in the precision that is asked for.

    torch.optim.Muon iterates in bfloat16, which a CPU without bf16 units emulates about thirty times slower. Equal
    shapes are stacked, so that a model's matrices take a handful of batched products. The update is scaled to AdamW's
    usual root mean square (0.2), as in torch's `adjust_lr_fn="match_rms_adamw"`.
    """

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.float32,
    ):
        self.precision = precision
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": same} for same in shapes.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure, so no loss
        """One update of every matrix."""
        for group in self.param_groups:
            updates = []
            for matrix in group["params"]:
                buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - group["momentum"])
                updates.append(matrix.grad.lerp(buffer, group["momentum"]))  # Nesterov
            scale = group["lr"] * 0.2 * max(group["params"][0].shape) ** 0.5
            for matrix, update in zip(
                group["params"], orthogonal(torch.stack(updates).to(self.precision)), strict=True
            ):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: five quintic Newton-Schulz iterations over a stack (M, a, b)."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def optimisers(model: LlamaForCausalLM, precision: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=MATRIX_LR, weight_decay=0.02, precision=precision),
        torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy of ids (rows, length + 1), each from those before it."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = model.lm_head(model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state)
    return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@dataclass
class Pace:
    """How many tokens a run of so many minutes reads: known once its steps are warm, by their speed so far.

    The last hundredth of the time is left for the checkpoint.
    """

    minutes: float
    began: float = field(default_factory=time.monotonic)
    mark: tuple[float, int] | None = None

    def tokens(self, seen: int) -> float:
        """Call it twice: when the steps are warm, and some hundred steps later."""
        now = time.monotonic()
        if self.mark is None:
            self.mark = now, seen
            return math.inf
        rate = (seen - self.mark[1]) / (now - self.mark[0])
        return seen + rate * (self.began + 59.4 * self.minutes - now)


def others_run() -> bool:
    """Does anything but this thread want a core just now (Linux)?"""
    running = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("procs_running"))
    return int(running.split()[1]) > 1


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, state: dict[str, object]) -> None:
    """Write the bf16 Hugging Face folder and the fp32 training state, the state last and atomically."""
    weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"}  # it is tied
    model.save_pretrained(out, state_dict=weights)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(out)
    torch.save(state, out / "state.tmp")
    os.replace(out / "state.tmp", out / "state.pt")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--heldout", type=Path, required=True, help="xz text that no step trains on")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=math.inf, help="training tokens in all")
    parser.add_argument("--minutes", type=float, help="instead of --tokens: as many as this machine reads in the time")
    parser.add_argument("--decay-tokens", type=float, default=0.0, help="in tokens, or as a share of all below 1")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="a folder of weights to begin with")
    parser.add_argument("--seen", type=float, default=0.0, help="tokens that the weights of --start have read")
    parser.add_argument(
        "--bf16", action="store_true", help="products in bfloat16 (only where the machine has units for it)"
    )
    parser.add_argument("--compile", action="store_true", help="forward and backward through torch.compile")
    parser.add_argument("--yielding", action="store_true", help="one thread in steps that begin while others compute")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokenizer)
    stream, heldout = (
        torch.from_numpy(encode(text, tokenizer, options.out / name).astype(np.int32)).to(options.device)
        for text, name in ((options.corpus, "corpus.npy"), (options.heldout, "heldout.npy"))
    )
    with lzma.open(options.heldout) as text:
        size = len(text.read())
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **ARCHITECTURE))
    model.to(options.device)
    parts = optimisers(model, torch.bfloat16 if options.bf16 else torch.float32)
    per_step = options.rows * options.length
    step, tokens, seconds = 0, 0, 0.0
    if options.start:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(options.start, dtype=torch.float32).state_dict())
        tokens = int(options.seen)
        step = -(-tokens // per_step)  # the next row that is all new
    begun = step
    if options.resume:
        state = torch.load(options.out / "state.pt", weights_only=True, map_location=options.device)
        model.load_state_dict(state["model"])
        for part, saved in zip(parts, state["optimisers"], strict=True):
            part.load_state_dict(saved)
        step, tokens, seconds = state["step"], state["tokens"], state["seconds"]
        begun = state["begun"]
        if changed := [name for name in FIXED if state.get(name) not in (None, getattr(options, name))]:
            parser.error(f"it was begun with other --{' and --'.join(changed)}")

    if options.compile:
        torch._inductor.config.cpp.dynamic_threads = True
    loss_of = torch.compile(next_token_loss) if options.compile else next_token_loss
    model.train()
    pace = Pace(options.minutes) if options.minutes else None
    began, mean, total = time.monotonic(), torch.zeros((), device=options.device), options.tokens
    started = step
    if options.resume:
        mean = mean + state.get("mean", 0.0)
    while tokens < total:
        if pace and step - started in PACING:
            mean.item()  # wait for the device
            total = max(pace.tokens(tokens), tokens + per_step)
        decay = options.decay_tokens * (total if options.decay_tokens < 1 and total < math.inf else 1)
        left = (total - tokens) / decay if decay else 1.0
        factor = min(1.0, (step - begun + 1) / WARMUP_STEPS, max(left, 0.0))
        if options.yielding:
            torch.set_num_threads(1 if others_run() else options.threads)
        for part, lr in zip(parts, (MATRIX_LR, OTHER_LR), strict=True):
            for group in part.param_groups:
                group["lr"] = lr * factor
        ids = rows(stream, step, options.rows, options.length, options.seed)
        loss = loss_of(model, ids, options.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            part.step()
            part.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + per_step
        mean = torch.lerp(loss.detach(), mean, 0.0 if step == begun + 1 else 0.98)
        last = tokens >= total
        if step % options.every == 0 or last:
            now = time.monotonic()
            seconds, began = seconds + now - began, now
            bpb = bits_per_byte(model, heldout, size, options.length, None if last else 20_000)
            fact = {"step": step, "tokens": tokens, "loss": round(mean.item(), 4), "bits_per_byte": round(bpb, 4)}
            fact |= {"all_heldout": last, "seconds": round(seconds), "lr": parts[0].param_groups[0]["lr"]}
            print(json.dumps(fact), flush=True)
            with (options.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(fact) + "\n")
            state = {"model": model.state_dict(), "optimisers": [part.state_dict() for part in parts]}
            state |= {"step": step, "tokens": tokens, "seconds": seconds, "begun": begun, "mean": mean.item()}
            state |= {name: getattr(options, name) for name in FIXED}
            save(options.out, model, tokenizer, state)
            began = time.monotonic()


if __name__ == "__main__":
    main()
