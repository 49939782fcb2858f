"""What the method does at a small scale: studies on real data, as sweeps of labeltune itself.

    python studies.py run --data DATA --work WORK [--only NAME …] [--rows 500] [--tiny FOLDER]
    python studies.py report --work WORK --out results/studies --hardware "one line"

Every study is a declaration: data sets, backbones, axes and seeds. A cell is one sweep in a folder of its own; what is
done is not done again, and what was interrupted goes on. Settings are chosen by dev, scores are those of test (every
trial's: a study compares settings, it does not choose a model). Rows are a seeded choice of the real data.

Data sets: SST-2, AG News, WNUT-17 and livedoor where `--data` has them, and the demo's two tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from study_bench import DATA, RATES, SETS, Axes, Bench, Found, by_seed, interval, mean_sd, scores_on, scores_on_test
from study_plots import draw
from transformers import (
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

import labeltune
from labeltune.model.checkpoints import resolve
from labeltune.model.settings import ModelConfig
from labeltune.training.schedule import scheduled
from labeltune.training.settings import TrainConfig

SEEDS = (1, 2, 3, 4, 5)
ADAPT_TOKENS = {"clm": 150_000, "mntp": 3_000_000}
SCRATCH_TOKENS, SCRATCH_RATES = 20_000_000, (2e-3, 4e-3, 8e-3)
PASSES = {
    ("ag_news", 100): (5, 20),
    ("entities", 100): (5, 20, 70),
    ("wnut17", 1000): (5, 8, 15),
    ("intents", 857): (5, 10, 20),
    ("sst2", 100): (5, 10, 20, 40),
}
"""By data set and training rows, the numbers of passes that stand beside the default."""
MEASURED = ("sst2", "ag_news", "wnut17", "livedoor")
"""The data sets that defaults are measured on."""
LOOKS = {"before": "before", "after": "heldout"}


def meaning(bench: Bench) -> Iterator[Found]:
    """Do the bundled weights carry meaning? The same shape at random, another small model, and words counted.

    The learning rate is the one of `--rates` that dev prefers, for each model and data set; then `--seeds`.
    """
    models = [name for name in ("mini", "random", "tiny") if bench.models[name]]
    sets = bench.sets or SETS
    found = bench.each(_trained, [(set_, model) for set_ in sets for model in models])
    for set_ in sets:
        line: Found = {"data": DATA[set_].title, "metric": DATA[set_].metric, "words": bench.baseline(set_)}
        for model in models:
            rate, scores = found[set_, model]
            line |= {model: mean_sd(scores), f"{model} lr": f"{rate:g}"}
        pairs = zip(found[set_, "mini"][1], found[set_, "random"][1], strict=True)
        yield line | {"mini - random": interval([a - b for a, b in pairs])}


def _trained(bench: Bench, cell: tuple[str, str]) -> tuple[float, list[float]]:
    """The chosen learning rate, and the test scores of three seeds."""
    set_, model = cell
    rate = bench.best_rate(f"meaning/{set_}-{model}", set_, model)
    found = bench.sweep(f"meaning/{set_}-{model}/seeds", set_, model, {"train.lr": [rate]}, SEEDS[: bench.seeds])
    return rate, scores_on_test(found, set_)


def unmasked_pretraining(bench: Bench) -> Iterator[Found]:
    """Does masked next-token prediction under a removed mask (mntp) help a tagger without mask?"""
    texts = [bench.texts(set_) for set_ in ("sst2", "ag_news", "wnut17")]
    yield from _adapted(bench, "mntp", texts, "entities", bench.rows, {"model__unmask": "all"})


def domain_pretraining(bench: Bench) -> Iterator[Found]:
    """Does going on with next-token prediction on a data set's own texts help, with a hundred labelled rows?"""
    yield from _adapted(bench, "clm", [bench.texts("ag_news", 20_000)], "ag_news", 100, {})


def _adapted(
    bench: Bench, objective: str, texts: Sequence[Path], set_: str, rows: int, own: Mapping[str, Any]
) -> Iterator[Found]:
    """The same training from the bundled backbone as it is and adapted, at a learning rate chosen for each."""
    folder = bench.work / f"adapted-{objective}"
    if not (folder / "metrics.json").exists():
        settings = {
            "adapt.objective": objective,
            "adapt.tokens": ADAPT_TOKENS[objective],
            "adapt.lr": 1e-3,
            "adapt.threads": 1,
        }
        labeltune.adapt(
            [str(path) for path in texts], model="mini", out=folder, settings=settings, resume=folder.exists()
        )
    scores, figures = {}, json.loads((folder / "metrics.json").read_text("utf-8"))
    for name, model in (("as it is", "mini"), ("adapted", str(folder))):
        stem = f"{objective}/{name.replace(' ', '-')}"
        rate = bench.best_rate(stem, set_, model, RATES[1:4], rows=rows, **own)
        found = bench.sweep(f"{stem}/seeds", set_, model, {"train.lr": [rate]}, SEEDS[:3], rows=rows, **own)
        scores[name] = scores_on_test(found, set_)
    losses = {f"held-out loss {when}": f"{figures[part]['loss']:.3f}" for when, part in LOOKS.items()}
    line: Found = {"objective": objective, "data": DATA[set_].title, "rows": rows, **losses}
    line |= {name: mean_sd(values) for name, values in scores.items()}
    pairs = zip(scores["adapted"], scores["as it is"], strict=True)
    yield line | {"adapted - as it is": interval([a - b for a, b in pairs])}


def defaults(bench: Bench) -> Iterator[Found]:
    """Which learning rate is best? Dev scores, one seed each, over the backbone's size."""
    models = [name for name in ("mini", "tiny") if bench.models[name]]
    cells = [(set_, model) for set_ in bench.sets or MEASURED for model in models]
    for (set_, model), found in bench.each(_rates, cells).items():
        line: Found = {"data": DATA[set_].title, "backbone": model}
        yield line | {f"{float(row['train.lr']):g}": float(row[f"dev_{DATA[set_].metric}"]) for row in found}


def _rates(bench: Bench, cell: tuple[str, str]) -> list[Found]:
    set_, model = cell
    return bench.sweep(f"meaning/{set_}-{model}/rates", set_, model, {"train.lr": bench.rates}, (0,), test=False)


def passes(bench: Bench) -> Iterator[Found]:
    """How often should few rows be read? No setting is given but the number of passes; two seeds.

    The last line of each data set is the default.
    """
    for (set_, rows), some in PASSES.items():
        stem = f"passes/{set_}-{rows}"
        found = bench.sweep(stem, set_, "mini", {"train.epochs": some}, SEEDS[:2], rows=rows)
        found += bench.sweep(f"{stem}-default", set_, "mini", {}, SEEDS[:2], rows=rows)
        usual = scheduled(TrainConfig(), rows, tokens=0).epochs
        for number in (*some, None):
            own = [row for row in found if row.get("train.epochs") == (None if number is None else f"{number:.1f}")]
            line: Found = {"data": DATA[set_].title, "rows": rows, "passes": number or usual}
            line |= {split: mean_sd(scores_on(split, own, set_)) for split in ("dev", "test")}
            yield line | {"metric": DATA[set_].metric}


def sizes(bench: Bench) -> Iterator[Found]:
    """Does a user who sets nothing get a good model, of a hundred rows and of all? One seed, scores of test."""
    for set_ in bench.sets or MEASURED:
        for rows in (100, len(bench.all_rows(set_))):
            found = bench.sweep(f"sizes/{set_}-{rows}", set_, "mini", {}, SEEDS[:1], rows=rows)
            usual = scheduled(TrainConfig(), rows, tokens=0).epochs
            line: Found = {"data": DATA[set_].title, "rows": rows, "passes": usual, "metric": DATA[set_].metric}
            yield line | {"labeltune": mean_sd(scores_on_test(found, set_)), "words": bench.baseline(set_, rows)}


def head_and_alpha(bench: Bench) -> Iterator[Found]:
    """The head's own learning rate, and alpha (rank 32), at the best learning rate; `--passes`, two seeds."""
    own = {} if bench.passes is None else {"train__epochs": bench.passes}
    for set_ in bench.sets or ("sst2", "entities"):
        rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini")
        for name, axis in (("train.head_lr", [rate / 3, rate, 3 * rate]), ("lora.alpha", [16, 32, 64])):
            stem = f"head_and_alpha/{set_}-{name}"
            found = bench.sweep(stem, set_, "mini", {name: axis}, (0, 1), train__lr=rate, **own)
            for value in axis:
                dev = [float(row[f"dev_{DATA[set_].metric}"]) for row in found if float(row[name]) == value]
                yield {"data": DATA[set_].title, "lr": rate, "setting": name, "value": value, "dev": mean_sd(dev)}


def pooling_and_mask(bench: Bench) -> Iterator[Found]:
    """What is pooled, how, and with which mask."""
    axes = {
        "model.pooling": ("last", "mean", "max"),
        "model.pool_on": ("hidden", "logits"),
        "model.unmask": ("none", "all"),
    }
    yield from grid(bench, "pooling_and_mask", "sst2", axes)


def mask_groups(bench: Bench) -> Iterator[Found]:
    """The mask removed in any of four groups of two layers: the sixteen patterns of arXiv 2401.14556, at this scale."""
    parts = ("0:2", "2:4", "4:6", "6:8")
    patterns = [",".join(p for n, p in enumerate(parts) if bits >> n & 1) or "none" for bits in range(16)]
    yield from grid(bench, "mask_groups", "entities", {"model.unmask": patterns})


def repetition(bench: Bench) -> Iterator[Found]:
    """The text read again (arXiv 2601.17585), against depth and against a removed mask."""
    axes = {"model.unmask": ("all", "none"), "data.repeat": (0, 1), "model.depth": (4, 6, 8)}
    yield from grid(bench, "repetition", "entities", axes)


def grid(bench: Bench, name: str, set_: str, axes: Axes) -> Iterator[Found]:
    """Every combination of the axes with the bundled backbone, five seeds, at the learning rate that dev prefers."""
    rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini")
    found = bench.sweep(f"{name}/{set_}", set_, "mini", axes, SEEDS, train__lr=rate)
    for values in dict.fromkeys(tuple(row[axis] for axis in axes) for row in found):
        where = dict(zip(axes, values, strict=True))
        yield {"data": DATA[set_].title, **where, DATA[set_].metric: mean_sd(scores_on_test(found, set_, **where))}


def small_data(bench: Bench) -> Iterator[Found]:
    """How many rows it takes, against words counted."""
    for set_ in ("sst2", "ag_news"):
        rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini")
        for rows in (16, 64, 256, 1000):
            name = f"small_data/{set_}-{rows}"
            found = bench.sweep(name, set_, "mini", {"train.lr": [rate]}, SEEDS, rows=rows)
            line = {"data": DATA[set_].title, "rows": rows, "labeltune": mean_sd(scores_on_test(found, set_))}
            yield line | {"TF-IDF": bench.baseline(set_, rows)}


def languages(bench: Bench) -> Iterator[Found]:
    """One model for English news (4 classes) and Japanese articles (9), against one for each; accuracy by language.

    The bundled backbone has read little Japanese: a character is about three of its byte-level tokens.
    """
    joint, parts = DATA["joint"], DATA["joint"].parts
    found = {}
    for set_ in ("joint", *parts.values()):
        rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini", RATES[1:4])
        found[set_] = bench.sweep(f"languages/{set_}", set_, "mini", {"train.lr": [rate]}, SEEDS)
    for part, set_ in parts.items():
        own = [float(row["test_accuracy"]) for row in by_seed(found[set_])]
        shared = [
            bench.figures("languages/joint", row)["test"]["parts"][part]["accuracy"] for row in by_seed(found["joint"])
        ]
        line: Found = {"language": part, "data": DATA[set_].title, "one per language": mean_sd(own)}
        line |= {joint.title: mean_sd(shared)}
        yield line | {"difference": interval([a - b for a, b in zip(shared, own, strict=True)])}


def decoder_and_encoder(bench: Bench) -> Iterator[Found]:
    """A decoder and an encoder of one size, from scratch on the same text for the same budget, then fine-tuned alike.

    Llama and ModernBERT, 4 layers of 128, the bundled tokenizer; next tokens against masked ones, 20 million tokens
    (hours without a GPU), the rate with the lowest held-out loss of three. All weights are fine-tuned, with mean
    pooling; the learning rate is the best of three on dev.
    """
    models, pretraining = from_scratch(bench)
    yield from pretraining
    kinds = {
        "decoder": ("decoder", "none"),
        "decoder, mask removed": ("decoder", "all"),
        "encoder": ("encoder", "all"),
    }
    for set_ in ("sst2", "ag_news", "entities"):
        line: Found = {"data": DATA[set_].title, "metric": DATA[set_].metric}
        for kind, (name, unmask) in kinds.items():
            own = {"lora__kind": "full", "model__unmask": unmask}
            own |= {"model__pooling": "mean"} if DATA[set_].task == "classification" else {}
            stem = f"decoder_and_encoder/{set_}-{kind.replace(', ', '-').replace(' ', '-')}"
            rate = bench.best_rate(stem, set_, str(models[name]), (3e-4, 1e-3, 3e-3), **own)
            found = bench.sweep(f"{stem}/seeds", set_, str(models[name]), {"train.lr": [rate]}, SEEDS, **own)
            line |= {kind: mean_sd(scores_on_test(found, set_)), f"{kind} lr": f"{rate:g}"}
        yield line


SIZE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
SHAPES: dict[str, tuple[str, type[PretrainedConfig]]] = {
    "decoder": ("clm", LlamaConfig),
    "encoder": ("mlm", ModernBertConfig),
}
"""The objective, and the family whose blocks have this size: both are gated, so they have equally many weights."""


def from_scratch(bench: Bench) -> tuple[dict[str, Path], list[Found]]:
    """For each family the model with the lowest held-out loss, and the losses of all rates."""
    found = bench.each(pretrained, [(name, rate) for name in SHAPES for rate in SCRATCH_RATES])
    losses = {
        cell: json.loads((folder / "metrics.json").read_text("utf-8"))["heldout"] for cell, folder in found.items()
    }
    best = {name: min(SCRATCH_RATES, key=lambda rate, name=name: losses[name, rate]["loss"]) for name in SHAPES}
    lines: list[Found] = []
    for name, (objective, shape) in SHAPES.items():
        line: Found = {"data": f"pretraining: {name} ({shape.model_type}, {objective})", "metric": "held-out loss"}
        line |= {f"rate {rate:g}": f"{losses[name, rate]['loss']:.3f}" for rate in SCRATCH_RATES}
        bits = losses[name, best[name]].get("bits_per_byte")
        lines.append(line | ({"bits per byte": f"{bits:.3f}"} if bits else {}))
    return {name: found[name, rate] for name, rate in best.items()}, lines


def pretrained(bench: Bench, cell: tuple[str, float]) -> Path:
    """A small model from scratch on the corpus, with the bundled tokenizer, at a learning rate."""
    name, rate = cell
    folder, (objective, shape) = bench.work / f"scratch-{name}-{rate:g}", SHAPES[name]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(resolve(ModelConfig(name="mini")))
    begin, end = folder.with_name(f"{folder.name}-shape"), tokenizer.eos_token_id
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"), end)
    config = shape(**SIZE, **special, vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True)
    if not (folder / "metrics.json").exists():
        config.save_pretrained(begin)
        tokenizer.save_pretrained(begin)
        settings = {"adapt.objective": objective, "adapt.tokens": SCRATCH_TOKENS, "adapt.threads": 1}
        settings |= {"adapt.from_config": str(begin), "adapt.context": 256, "adapt.heldout": 0.01, "adapt.lr": rate}
        settings |= {"adapt.batch_tokens": 16_384}
        labeltune.adapt(str(bench.corpus), out=folder, settings=settings, resume=folder.exists())
    return folder


def probes(bench: Bench) -> Iterator[Found]:
    """What frozen layers know: logistic regression on the mean of a layer's states, nothing else trained.

    By stock transformers and scikit-learn; C is the best of three on dev; macro F1. Layer 0: the embeddings.
    """
    for set_ in ("sst2", "ag_news", "intents"):
        for model in ("mini", "random"):
            parts = [bench.split(set_, split) for split in ("train", "dev", "test")]
            states = [mean_states(bench.models[model], [text for text, _ in part], set_) for part in parts]
            labels = [[label for _, label in part] for part in parts]
            line: Found = {"data": DATA[set_].title, "weights": model}
            yield line | {f"layer {n}": probe([s[n] for s in states], labels) for n in range(len(states[0]))}


def mean_states(model: str, texts: Sequence[str], set_: str) -> torch.Tensor:
    """(layers + 1, texts, hidden): each layer's states, averaged over a text."""
    folder = resolve(ModelConfig(name=model))
    tokenizer, stock = PreTrainedTokenizerFast.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    found = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=DATA[set_].max_tokens)["input_ids"]
            found.append(torch.stack(stock(ids, output_hidden_states=True).hidden_states)[:, 0].mean(1))
    return torch.stack(found, 1)


def probe(states: Sequence[torch.Tensor], labels: Sequence[Sequence[str]]) -> float:
    """Macro F1 on test of the probe that is best on dev."""
    (train, dev, test), best = [part.numpy() for part in states], (-1.0, -1.0)
    for strength in (0.1, 1.0, 10.0):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(train, labels[0])
        scores = [f1_score(y, fitted.predict(x), average="macro") for x, y in ((dev, labels[1]), (test, labels[2]))]
        best = max(best, (scores[0], scores[1]), key=lambda pair: pair[0])
    return float(best[1])


STUDIES: dict[str, Callable[[Bench], Iterator[Found]]] = {
    study.__name__: study
    for study in (
        meaning,
        defaults,
        passes,
        sizes,
        unmasked_pretraining,
        domain_pretraining,
        head_and_alpha,
        small_data,
        pooling_and_mask,
        mask_groups,
        repetition,
        languages,
        decoder_and_encoder,
        probes,
    )
}


# The command


def random_model(work: Path) -> str:
    """The bundled shape and tokenizer with random weights."""
    folder, mini = work / "random", Path(resolve(ModelConfig(name="mini")))
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig.from_pretrained(mini)).save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(mini).save_pretrained(folder)
    return str(folder)


def refuse_another(work: Path, options: Mapping[str, Any]) -> None:
    """Exit where the folder was begun with other options: what is done there would be taken for theirs."""
    path, own = work / "options.json", json.loads(json.dumps(options))
    if not path.exists():
        path.write_text(json.dumps(own) + "\n", "utf-8")
    elif (begun := json.loads(path.read_text("utf-8"))) != own:
        raise SystemExit(f"{work}: begun with {begun}, not {own}; take another folder")


def report(work: Path, out: Path, hardware: str) -> None:
    """A table of each study that is done."""
    out.mkdir(parents=True, exist_ok=True)
    for name, study in STUDIES.items():
        path = work / f"{name}.json"
        if not path.exists():
            continue
        lines = json.loads(path.read_text("utf-8"))
        columns = list(dict.fromkeys(column for line in lines for column in line))
        title = " ".join((study.__doc__ or "").split())
        shown = [f"# {name}", "", title, "", f"{hardware}. Scores in percent, of test unless the title says dev.", ""]
        shown += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        shown += ["| " + " | ".join(_shown(line.get(column), column) for column in columns) + " |" for line in lines]
        if draw(lines, title.partition(".")[0].partition("?")[0], out / f"{name}.svg"):
            shown += ["", f"![{name}]({name}.svg)"]
        (out / f"{name}.md").write_text("\n".join(shown) + "\n", "utf-8")
        (out / f"{name}.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _shown(value: Any, column: str) -> str:
    """A score in percent; settings as they are."""
    score = isinstance(value, float) and column not in ("lr", "value")
    return f"{100 * value:.1f}" if score else "" if value is None else f"{value}"


def main(words: Sequence[str] | None = None) -> None:
    """Run studies, or write their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("run", "report"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    parser.add_argument("--hardware", default="")
    parser.add_argument("--only", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--corpus", type=Path, help="text to pretrain small models on")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tiny", help="another small backbone")
    parser.add_argument("--sets", nargs="+", default=(), choices=[*DATA], help="data sets, in place of a study's own")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to choose from")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each cell of `meaning`")
    parser.add_argument("--passes", type=int, help="over the rows of `head_and_alpha`, in place of the default")
    options = parser.parse_args(words)
    if options.verb == "report":
        report(options.work, options.out, options.hardware)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    decide = ("rows", "rates", "tiny", "seeds", "passes")
    refuse_another(options.work, {name: getattr(options, name) for name in decide})
    models = {"mini": "mini", "random": random_model(options.work), "tiny": options.tiny}
    where = (options.data, options.work, options.rows, models)
    bench = Bench(*where, options.processes, options.corpus, options.rates, options.sets, options.seeds, options.passes)
    for name in options.only:
        lines = []
        for line in STUDIES[name](bench):
            lines.append(line)
            (options.work / f"{name}.json").write_text(json.dumps(lines, ensure_ascii=False), "utf-8")
            print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
