"""The dev rows that a run was chosen on, found again; other rows in their place are refused.

`splits.json` says where they came from, what the file's hash was and, where they were held out of another file, which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labeltune.data.datasets import has_splits, open_dataset, sha256_of
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, LabeltuneError, RunError
from labeltune.run import SPLITS, Run
from labeltune.schema import Example
from labeltune.storage import is_there, read_json

HINT = "name the dev rows' file, as it was in training, with --data"


def dev_rows(run: Run, data: object = None) -> tuple[list[Example], dict[str, Any]]:
    """The dev examples in order, and what `splits.json` says of them.

    data: where their file lies now; None is where it lay in training.

    Raises:
        RunError: the rows cannot be found. DataError: the file is not the one that was recorded.
    """
    recorded: Any = read_json(run.folder / SPLITS)
    facts = recorded["dev"]
    source, split = _source(run.config.data, facts, data)
    if source is None:
        raise RunError("the dev rows were in memory alone", at=str(run.folder), hint=HINT)
    name = "dev" if facts["ids"] is None else "train"
    try:
        dataset = open_dataset(source, run.config.data, run.config.task, labelled=True, name=name, split=split)
    except LabeltuneError as error:
        raise RunError(f"the dev rows cannot be read ({error})", at=str(run.folder), hint=HINT) from error
    wanted = None if facts["ids"] is None else set(facts["ids"])
    examples = [one for one in dataset if wanted is None or one.id in wanted]
    in_memory = facts["sha256"] is None  # then; they may lie in a file now
    found = sha256_of(examples) if in_memory else dataset.sha256
    if found != facts["content"] or len(examples) != facts["rows"]:
        raise DataError(
            "these are not the dev rows of the training (another SHA-256)",
            at=dataset.source,
            hint="restore the file, or name an untouched copy with --data",
        )
    return examples, facts


def _source(config: DataConfig, facts: Mapping[str, Any], data: object) -> tuple[object, str | None]:
    """The dev rows, or those that they were held out of: what the settings name, or `data`; and the split of it."""
    whole = config.train if data is None else data
    in_memory = facts["sha256"] is None and not has_splits(whole, Path())
    if data is None and in_memory:
        return None, None
    if facts["ids"] is not None:
        return whole, None
    if isinstance(config.dev, str) and not is_there(Path(config.dev)) and has_splits(whole, Path()):
        return whole, config.dev
    return (config.dev if data is None else data), None
