"""What is pushed to the hub is a whole export with a card, in one commit."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from labeltune.errors import RunError, SettingsError
from labeltune.export.exporting import export


class Shelf:
    """A hub that keeps what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.made, self.files = error, [], {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        self.made.append((repo_id, private))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_a_push_is_one_private_repository_with_card_figures_and_certificate(finished: Path, tmp_path: Path) -> None:
    shelf = Shelf()
    export(finished, "hub", out=tmp_path / "x", repo="me/moods", widget=["the hen"], api=shelf)
    assert shelf.made == [("me/moods", True)] and json.loads(shelf.files["certificate.json"])["holds"]
    card = ModelCard.load(tmp_path / "x" / "README.md")
    assert card.data.pipeline_tag == "text-classification" and card.data.widget == [{"text": "the hen"}]
    assert "| dev | macro_f1 |" in card.content and "base_model" not in card.data.to_dict()


def test_a_hub_that_refuses_leaves_the_export(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="me/moods: the hub did not take it"):
        export(finished, "hub", out=tmp_path / "x", repo="me/moods", api=Shelf(ConnectionError("no route")))
    assert (tmp_path / "x" / "certificate.json").exists()


def test_only_the_hub_is_pushed_to(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not pushed"):
        export(finished, "onnx", out=tmp_path / "x", repo="me/moods")
