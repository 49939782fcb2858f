"""The model card of a run: what it is, what it was trained on, how well it does, how to use it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from labeltune.inference import caveats
from labeltune.ledger import Ledger
from labeltune.run import CARD, SPLITS, Run, is_number, number
from labeltune.storage import read_json, write_atomic
from labeltune.wording import counted

PACKAGES = ("labeltune", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn")

TEMPLATE = """\
---
library_name: labeltune
{% if base -%}
base_model: {{ base }}
{% endif -%}
tags: [labeltune, {{ task }}]
---

# {{ name }}

A model for {{ task }}: `{{ backbone }}`, label-tuned ({{ adapter }}), mask removed in layers `{{ model.unmask }}`, \
`{{ model.pooling }}` pooling on {{ model.pool_on }}.
{% if state != "finished" %}
**This training was interrupted; it can go on with `--resume`.**
{% endif %}
## Use

```bash
labeltune predict {{ folder }} new.jsonl --out labelled.jsonl
```

```python
import labeltune

predictor = labeltune.load("{{ folder }}")
print(predictor.predict(["a text"]))
```

## Labels

{{ labels | length }}: {{ labels | join(", ") }}

## Figures

{% if splits -%}
| metric | {{ splits | join(" | ") }} |
|---|{{ "---:|" * splits | length }}
{% for row in rows -%}
| {{ row | join(" | ") }} |
{% endfor %}
{% for sentence in caveats -%}
- {{ sentence }}
{% endfor %}
{% endif -%}
{% if recipe %}
Recipe `{{ recipe.name }}`: {{ recipe.said }}.
{% endif -%}
{% for split, parts in by_part.items() %}
{{ split }}, by part:

| part | {{ metrics | join(" | ") }} |
|---|{{ "---:|" * metrics | length }}
{% for row in parts -%}
| {{ row | join(" | ") }} |
{% endfor %}
{% endfor -%}
The weights were chosen by dev `{{ select }}`{% if train.best_epoch %} (epoch {{ train.best_epoch }}){% endif %}. \
{% if "test" in data -%}
The test split was opened {{ openings | length | counted("time", "times") }}: {{ openings | join("; ") }}.
{%- else -%}
No test split was given: dev figures chose the weights, so expect less on new data.
{%- endif %}

Training: {{ train.steps }} steps, {{ train.seconds | number }} s, {{ train.rows_per_second | number }} rows/s, \
{{ train.tokens_per_second | number }} tokens/s, peak memory {{ train.peak_memory_gib | number }} GiB, \
{{ train.trained_parameters | number }} trained parameters.

## Data

| split | rows | source | SHA-256 |
|---|---:|---|---|
{% for split, facts in data.items() -%}
| {{ split }} | {{ facts.rows }} | `{{ facts.source }}`{{ " (a part: `splits.json`)" if facts.ids }} | \
`{{ facts.sha256 or "in memory" }}` |
{% endfor %}
The backbone's weights have the SHA-256 `{{ model.weights_sha256 or "unknown" }}`.

## Settings

`config.toml` holds every setting; `labeltune train {{ folder }}/config.toml --out NEW` repeats the training. \
Learning rate {{ settings.train.lr }}, {{ length }}, {{ batch }} per step, \
seed {{ settings.train.seed }}.

## Versions

Python {{ python }}{% for package, number in versions.items() %}, {{ package }} {{ number }}{% endfor %}.
"""


def write_card(run: Run) -> None:
    """Write `README.md` of a run folder."""
    write_atomic(run.folder / CARD, render(run))


def render(run: Run) -> str:
    """The card as Markdown."""
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"number": number, "counted": counted}
    figures = run.metrics
    splits = [name for name in ("dev", "test") if name in figures]
    config = run.config
    numbers = [name for name, value in figures.get("dev", {}).items() if is_number(value)]
    return environment.from_string(TEMPLATE).render(
        name=run.folder.name,
        folder=run.folder.name,
        task=config.task,
        state=run.state,
        base=config.model.name if is_hub_id(config.model.name or "") else None,
        backbone=config.model.name,
        adapter=_adapter(config.lora.model_dump()),
        model=config.model,
        settings=config,
        labels=[f"`{name}`" for name in run.labels.names],
        splits=splits,
        caveats=[f"{name}: {sentence}" for name in ("train", *splits) for sentence in caveats(figures[name])],
        figures=figures,
        recipe=figures.get("recipe"),
        rows=[[name, *(number(figures[split].get(name)) for split in splits)] for name in numbers],
        metrics=numbers,
        by_part={split: _parts(figures[split]["parts"], numbers) for split in splits if "parts" in figures[split]},
        batch=f"{config.train.batch_tokens} tokens"
        if config.train.batch_tokens
        else counted(config.train.batch_rows, "row", "rows"),
        length=counted(config.train.steps, "step", "steps")
        if config.train.steps
        else f"{config.train.epochs:g} epoch{'' if config.train.epochs == 1 else 's'}",
        train=figures.get("train", {}),
        select=config.train.select,
        openings=[f"{line['purpose']}, {line['time']}" for line in Ledger(run.folder).lines()],
        data=_in_order(read_json(run.folder / SPLITS)),
        python=platform.python_version(),
        versions=_versions(),
    )


def _adapter(lora: dict[str, Any]) -> str:
    if lora["kind"] in ("none", "full"):
        return {"none": "head only, no adapter", "full": "full fine-tuning"}[lora["kind"]]
    return f"{lora['kind']} rank {lora['rank']}, alpha {lora['alpha']:g}"


def _parts(parts: dict[str, dict[str, Any]], metrics: list[str]) -> list[list[str]]:
    return [[part, *(number(figures.get(name)) for name in metrics)] for part, figures in parts.items()]


def _in_order(splits: Any) -> dict[str, Any]:
    return {name: splits[name] for name in ("train", "dev", "test") if name in splits}


def is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the hub, and of no folder here."""
    return name.count("/") == 1 and not Path(name).exists()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
