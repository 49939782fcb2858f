"""The dev rows that a run was chosen on, found again; other rows in their place are refused.

`splits.json` says where they came from, what the file's hash was and, where they were held out of another file, which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labeltune.data.datasets import Dataset, open_dataset
from labeltune.errors import DataError, LabeltuneError, RunError
from labeltune.run import SPLITS, Run
from labeltune.schema import Example
from labeltune.storage import read_json

HINT = "name the dev rows' file, as it was in training, with --data"


def dev_rows(run: Run, data: object = None) -> tuple[list[Example], dict[str, Any]]:
    """The dev examples in order, and what `splits.json` says of them.

    data: where their file lies now; None is where it lay in training.

    Raises:
        RunError: the rows cannot be found. DataError: the file is not the one that was recorded.
    """
    recorded: Any = read_json(run.folder / SPLITS)
    facts = recorded["dev"]
    source = data if data is not None else _source(run, facts)
    if source is None:
        raise RunError("the dev rows were in memory alone", at=str(run.folder), hint=HINT)
    try:
        dataset = open_dataset(source, run.config.data, run.config.task, labelled=True, name=_name(source, facts))
    except LabeltuneError as error:
        raise RunError(f"the dev rows cannot be read ({error})", at=str(run.folder), hint=HINT) from error
    _refuse_other(dataset, facts)
    wanted = None if facts["ids"] is None else set(facts["ids"])
    return [one for one in dataset if wanted is None or one.id in wanted], facts


def _source(run: Run, facts: Mapping[str, Any]) -> object:
    """What the settings name: the dev rows, or those that they were held out of."""
    if facts["sha256"] is None and not str(facts["source"]).startswith("hf:"):
        return None
    return run.config.data.dev if facts["ids"] is None else run.config.data.train


def _name(source: object, facts: Mapping[str, Any]) -> str:
    return "train" if facts["ids"] is not None else "dev"


def _refuse_other(dataset: Dataset, facts: Mapping[str, Any]) -> None:
    whole = facts["ids"] is None
    if dataset.content == facts["content"] and (not whole or len(dataset) == facts["rows"]):
        return
    raise DataError(
        "these are not the dev rows of the training (another SHA-256)",
        at=dataset.source,
        hint="restore the file, or name an untouched copy with --data",
    )
