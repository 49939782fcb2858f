"""A commented recipe for data at hand: what was guessed is set, what may be changed stands beside it as a comment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from textwrap import wrap
from typing import Any

from labeltune.assembly import task_of
from labeltune.config import Config, describe, gather
from labeltune.data.datasets import Loaded, load
from labeltune.errors import SettingsError
from labeltune.losses import LOSSES
from labeltune.model.checkpoints import read_config, resolve
from labeltune.model.settings import MINI, ModelConfig
from labeltune.tasks import Task
from labeltune.training.schedule import LEAST_EPOCHS, scheduled
from labeltune.training.settings import LR, TrainConfig, default_lr

MAIN: Mapping[str, str] = {
    "data": "train dev test columns text label tokens tags spans group label_names label_order template normal_form "
    "max_tokens long overlap unit context on_bad_row",
    "model": "name unmask pooling pool_on depth dtype quantization checkpointing",
    "lora": "kind rank alpha dropout targets layers",
    "head": "loss class_weights label_smoothing dropout crf",
    "train": "lr head_lr epochs batch_rows schedule warmup weight_decay seed eval_every select patience device threads",
    "eval": "batch_tokens",
}
"""The settings that a recipe shows beside those that are set; `labeltune settings` has all."""

UNITS_ONLY = ("data.unit", "data.context", "head.crf")
"""What only a task on units (tagging) reads."""

BACKBONE = "mini"
"""The one that is there everywhere, where none is named."""

LABELS_SHOWN = 40
WIDTH = 112
Values = dict[str, Any]


def draft_recipe(
    data: str | Path,
    *,
    model: str | None = None,
    dev: str | Path | float | None = None,
    test: str | Path | float | None = None,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Read the data as a training would and write down, as TOML, what was guessed; arguments as in `train`.

    Paths are written as they were given, so the recipe belongs into the folder that they start from. A test file is
    named, not opened. Raises DataError and SettingsError as `train` would.
    """
    if not isinstance(data, str | Path):
        raise SettingsError("a recipe names its rows by path or hub id", at="data.train", hint="write them to a file")
    paths = {"data.train": data, "data.dev": dev, "data.test": test, "model.name": model or BACKBONE}
    written = {name: str(path) if isinstance(path, Path) else path for name, path in paths.items() if path is not None}
    asked = gather(None, {**written, "task": task}, settings or {})
    opened = asked.data if isinstance(asked.data.test, float) else asked.data.model_copy(update={"test": None})
    loaded = load(opened, asked.task, base=Path.cwd(), seed=asked.train.seed)
    found = loaded.config.model_copy(update={"test": asked.data.test} if asked.data.test is not None else {})
    settled = asked.model_copy(update={"task": loaded.task, "data": found})
    values = {**_flat(settled.model_dump(mode="json", exclude_unset=True, exclude_none=True)), **written}
    return "\n".join(_lines(values, loaded, task_of(settled))) + "\n"


def _flat(tree: Mapping[str, Any]) -> Values:
    """Dotted names of a config's tree: sections are one level deep."""
    sections = {name: part for name, part in tree.items() if name in MAIN}
    inside = {f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()}
    return {name: value for name, value in tree.items() if name not in MAIN} | inside


def _lines(values: Values, loaded: Loaded, task: Task) -> Iterator[str]:
    yield from _head(str(values["data.train"]))
    meanings = {name: meaning for name, _, _, meaning in describe()}
    open_choices = _open_choices(task, str(values["model.name"])) | _length(values, len(loaded.train))
    yield from _setting("task", values["task"], meanings["task"])
    for section, shown in MAIN.items():
        yield from ("", f"[{section}]")
        if section == "data":
            yield from _found(loaded, task)
        for name in dict.fromkeys([*_main(section, shown), *(n for n in values if n.startswith(section + "."))]):
            key = name.partition(".")[2]
            if name in values:
                yield from _setting(key, values[name], meanings[name])
            elif (name not in UNITS_ONLY or task.targets == "units") and name in open_choices:
                yield from _setting(key, open_choices[name], meanings[name], comment="# ")


def _main(section: str, shown: str) -> list[str]:
    return [f"{section}.{key}" for key in shown.split()]


def _head(source: str) -> Iterator[str]:
    yield from _comment(
        f"A recipe for {source}: what is set was guessed from the data or asked for; a line that begins with "
        "`# name =` shows a default, or an example where there is none: remove the # and change it."
    )
    yield from _comment("Paths are relative to this file. `labeltune settings` lists every setting.")
    yield "#"
    yield "#   labeltune inspect recipe.toml                     what the model will see, and what is suspicious"
    yield "#   labeltune train recipe.toml --out runs/first"
    yield ""


def _found(loaded: Loaded, task: Task) -> Iterator[str]:
    for sentence in loaded.said:
        yield from _comment(sentence)
    counts = Counter(name for example in loaded.train for name in task.gold(example))
    if counts:
        names = [f"{name} {count:,}" for name, count in sorted(counts.items())]
        more = f", and {len(names) - LABELS_SHOWN} more" if len(names) > LABELS_SHOWN else ""
        yield from _comment(f"{len(names)} labels in training: {', '.join(names[:LABELS_SHOWN])}{more}")


def _rate(model: str) -> float:
    """The default learning rate of a backbone at hand; of one on the hub, whose size is not known here, a 7B one's."""
    if model != MINI and not Path(model).is_dir():
        return LR
    config = ModelConfig(name=model)
    return default_lr(read_config(resolve(config), config).get_text_config().hidden_size, full=False)


def _open_choices(task: Task, model: str) -> Values:
    """What a commented line shows: the default; where the code settles it later, that; else an example."""
    config = Config().model_dump(mode="json", exclude_none=True)
    rate = _rate(model)
    settled = {
        "model.unmask": task.unmask,
        "model.pooling": task.pooling,
        "lora.alpha": config["lora"]["rank"],
        "train.lr": rate,
        "train.head_lr": rate,
        "train.select": task.select,
        "data.max_tokens": 512,
    }
    examples = {
        "data.test": "test.jsonl",
        "data.group": "author",
        "data.template": "{title}\n{body}",
        "data.label_names": ["first", "second"],
        "model.depth": 16,
        "lora.targets": ["q_proj", "v_proj"],
        "lora.layers": "last:8",
        "train.patience": 2,
        "train.threads": 1,
        "eval.batch_tokens": 1024,
    }
    own = {"head.loss": "focal"} if "focal" in task.losses else {}
    takes = signature(LOSSES[task.losses[None]]).parameters
    weighted = {"head.class_weights": "balanced"} if "class_weights" in takes else {}
    return examples | _flat(config) | settled | own | weighted


def _length(values: Values, rows: int) -> Values:
    """How long so many rows are trained on; with tokens a step it is not known before they are counted."""
    given = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("train.")}
    config = TrainConfig(**given)
    if config.batch_tokens:
        return {"train.epochs": LEAST_EPOCHS, "train.eval_every": "epoch"}
    train = scheduled(config, rows, tokens=0)
    return {"train.epochs": train.epochs, "train.eval_every": train.eval_every}


def _setting(key: str, value: object, meaning: str, comment: str = "") -> Iterator[str]:
    yield from _comment(meaning)
    yield f"{comment}{key} = {to_toml_value(value)}"


def _comment(text: str) -> Iterator[str]:
    yield from wrap(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def to_toml_value(value: object) -> str:
    """One line of TOML; JSON's scalars and lists are TOML's too, but for a DEL character."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{to_toml_value(key)} = {to_toml_value(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
