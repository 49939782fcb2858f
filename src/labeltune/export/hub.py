"""An export on the Hugging Face hub: the folder with a model card that says task, figures, parity and how to use it.

Widget examples are what the user names; no row of anybody's data is published by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from labeltune.errors import RunError, SettingsError
from labeltune.export.certificate import Certificate
from labeltune.export.tuned import Tuned
from labeltune.model.checkpoints import resolve
from labeltune.run import CARD, is_number, number
from labeltune.storage import write_atomic

PIPELINES = {False: "text-classification", True: "token-classification"}


class Api(Protocol):
    """The two calls of `huggingface_hub.HfApi` that a push makes."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        """Make the repository, or leave it."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> object:
        """One commit with the folder's files."""


def write_card(tuned: Tuned, certificate: Certificate, folder: Path, widget: Sequence[str]) -> None:
    """`README.md` of the export."""
    head = ModelCardData(**_facts(tuned, widget)).to_yaml()
    figures = [
        f"| {split} | {name} | {number(value)} |"
        for split in ("dev", "test")
        for name, value in tuned.run.metrics.get(split, {}).items()
        if is_number(value)
    ]
    names = ", ".join(f"`{name}`" for name in tuned.run.labels.names)
    lines = [
        f"# {tuned.run.folder.name}",
        "",
        f"A model for {tuned.task.name}, trained with labeltune. Labels: {names or 'a number'}.",
        *("", "```python", "from transformers import pipeline", ""),
        *(f'pipeline("{PIPELINES[tuned.units]}", model=…)("a text")', "```", ""),
        *("## Figures", "", "| split | metric | value |", "|---|---|---:|", *figures, ""),
        *("## Parity", "", f"{certificate.runtime}: {certificate.change.sentence()} (`certificate.json`)."),
        *(f"- {note}." for note in certificate.notes),
    ]
    write_atomic(folder / CARD, f"---\n{head}\n---\n\n" + "\n".join(lines) + "\n")


def push(folder: Path, repo: str, *, private: bool = True, api: Api | None = None) -> None:
    """Upload the folder as one commit.

    Raises:
        RunError: the hub refuses, or cannot be reached; the folder stays. SettingsError: `repo` is no name.
    """
    hub = api or HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=f"Model {folder.name}")
    except HFValidationError as error:
        raise SettingsError(f"{repo!r} is no name of a repository", at="--repo", hint="owner/name") from error
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        hint = f"the export is whole in {folder}; log in with `hf auth login` and push again"
        raise RunError(f"the hub did not take it ({said})", at=repo, hint=hint) from error


def _facts(tuned: Tuned, widget: Sequence[str]) -> dict[str, Any]:
    """The card's metadata, in the hub's words."""
    facts: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[tuned.units],
        "tags": ["labeltune", tuned.task.name],
    }
    base = resolve(tuned.config.model)
    if not Path(base).exists():
        facts["base_model"] = base
    if widget:
        facts["widget"] = [{"text": text} for text in widget]
    return facts
