"""The pages say what the code does: settings, options, links and tables exist, and every command on them runs."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from labeltune import cli
from labeltune.adaptation.settings import Adaptation
from labeltune.config import Config, gather, parse_set
from labeltune.demo import demo_file
from labeltune.serve.settings import Serving
from labeltune.settings import known_names

ROOT = Path(__file__).resolve().parents[1]
README, GUIDE, REFERENCE = ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "reference.md"
PAGES = (README, GUIDE, REFERENCE)
KNOWN = {*known_names(Config), *known_names(Adaptation), *known_names(Serving)}
SECTIONS = {name.split(".")[0] for name in KNOWN if "." in name}


def name_of(path: Path) -> str:
    return path.name


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page, without comments."""
    for block in blocks(page, "bash"):
        yield from (line for line in block.splitlines() if line and not line.startswith("#"))


def words_of(line: str) -> list[str]:
    """The words behind `labeltune` of a line, without pipe and redirection."""
    words = shlex.split(line.partition(" | ")[2] or line)
    return words[1 : words.index(">") if ">" in words else None]


def test_the_tables_of_the_reference_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = REFERENCE.read_text("utf-8")
    assert generate.with_parts(page) == page, "run: python docs/generate.py"
    assert all(f"| `{name}` |" in page for name in KNOWN)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(sorted(SECTIONS))})\.[a-z_0-9]+)\b", page.read_text("utf-8"))
    files = {name for name in named if name.endswith((".jsonl", ".csv", ".conll", ".txt", ".toml", ".safetensors"))}
    assert set(named) - files <= KNOWN


@pytest.mark.parametrize("page", (README, GUIDE), ids=name_of)
def test_every_command_on_a_page_has_its_options(page: Path) -> None:
    known = typer.main.get_command(cli.app).commands
    for line in commands(page):
        command, *rest = words_of(line)
        options = {option for parameter in known[command].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line
        for before, value in pairwise(rest):
            if before == "--set" and not value.startswith("adapt."):
                gather(None, {}, dict([parse_set(value)]))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=name_of)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def data(folder: Path) -> None:
    """The files that the pages name: some of the demo's rows, in the forms that the pages mean."""
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in demo_file(split).read_text("utf-8").splitlines()[:48]]
        labelled = [{"text": row["text"], "label": row["intent"].split("_")[-1]} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled), "utf-8")
        (folder / f"{split}.conll").write_text("".join(f"to O\n{n}th B-place\nstreet I-place\n\n" for n in range(40)))
    texts = "".join(json.loads(line)["text"] + "\n\n" for line in demo_file("train").read_text("utf-8").splitlines())
    (folder / "texts.txt").write_text(texts, "utf-8")
    (folder / "more.txt").write_text("where is it\n")
    (folder / "new.jsonl").write_text('{"text": "my parcel is late"}\n')


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command line, as a shell would: `echo … |` before it and `> file` behind it are understood."""
    if line.startswith("echo "):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"where is my parcel\n")))
    words = words_of(line)
    short = ["--set", "train.steps=2"] if words[0] == "train" else []
    monkeypatch.setattr(sys, "argv", ["labeltune", *words, *short])
    said = io.StringIO()
    with pytest.raises(SystemExit) as ended, redirect_stdout(said):
        cli.main()
    assert ended.value.code in (0, None), line
    if " > " in line:
        Path(line.rpartition(" > ")[2]).write_text(said.getvalue(), "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", (README, GUIDE), ids=name_of)
def test_a_page_can_be_followed_word_for_word(
    page: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data(tmp_path)
    for line in commands(page):
        run(line.replace(" mini", f" {tiny_folder}"), monkeypatch)
    for block in blocks(page, "python"):
        code = block.replace('"mini"', repr(str(tiny_folder))).replace('"train.epochs": 3', '"train.steps": 2')
        exec(compile(code, str(page), "exec"), {})
