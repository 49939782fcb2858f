"""A folder of category folders of text files; the livedoor news layout (URL, date, title, body) is recognised."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from labeltune.data.readers.lines import Lines, read_whole
from labeltune.data.readers.rows import Row
from labeltune.data.readers.text import read_text
from labeltune.errors import DataError

CATEGORY = "category"
_NO_ARTICLE = re.compile(r"(license|licence|readme|changes|changelog|copying|notice)(\..*)?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def read_folder(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """A row a file, by sorted path, its `category` being its folder; or a row a line, of one file per category."""
    folders = categories(path)
    if not folders:
        yield from _files_of_lines(path, name)
        return
    articles = [file for folder in folders for file in article_files(folder)]
    if not articles:
        raise DataError("the category folders hold no text files", at=name, hint="articles end in .txt or in nothing")
    read = read_article if is_livedoor(articles[0]) else _read_text
    for file in articles:
        at = f"{name}/{file.parent.name}/{file.name}"
        row = read(file, at)
        yield Row(at, {CATEGORY: file.parent.name, **row.fields}, row.fault)


def categories(path: Path) -> list[Path]:
    """The category folders, sorted."""
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def article_files(folder: Path) -> list[Path]:
    """The text files of a category, sorted; licences, readmes and dot files are no articles."""
    with os.scandir(folder) as files:
        names = sorted(file.name for file in files if file.is_file() and _is_article(file.name))
    return [folder / name for name in names]


def _is_article(name: str) -> bool:
    if name.startswith(".") or _NO_ARTICLE.fullmatch(name):
        return False
    _, dot, suffix = name.rpartition(".")
    return not dot or suffix.lower() in ("txt", "text") or suffix.isdecimal()


def left_out(path: Path) -> int:
    """How many files in the category folders are not read as articles."""
    inside = (file for folder in categories(path) for file in folder.iterdir())
    return sum(file.is_dir() or not _is_article(file.name) for file in inside)


def _files_of_lines(path: Path, name: str) -> Iterator[Row]:
    files = article_files(path)
    if len(files) < 2:
        hint = "a data folder holds one folder of .txt files per category, or one .txt file of lines per category"
        raise DataError("this folder holds no categories", at=name, hint=hint)
    for file in files:
        for row in read_text(file, f"{name}/{file.name}", None):
            yield Row(row.at, {CATEGORY: file.stem, **row.fields}, row.fault)


def is_livedoor(file: Path) -> bool:
    """Is the first line a URL, the second a date?"""
    with Lines(file, file.name) as lines:
        first, second = next(lines, ""), next(lines, "")
    return first.startswith(("http://", "https://")) and _DATE.match(second) is not None


def read_article(file: Path, at: str) -> Row:
    """url, date, title and body; lines are stripped, blank ones dropped."""
    text, fault = read_whole(file, at)
    lines = [line.strip() for line in text.split("\n")]
    if not fault and (len(lines) < 3 or not _DATE.match(lines[1])):
        hint = "the other files hold URL, date, title and body on lines of their own"
        fault = DataError("this file is laid out otherwise than the first one", at=at, hint=hint)
    if fault:
        return Row(at, {"raw": text}, fault)
    return Row(at, {"url": lines[0], "date": lines[1], "title": lines[2], "body": "\n".join(filter(None, lines[3:]))})


def _read_text(file: Path, at: str) -> Row:
    text, fault = read_whole(file, at)
    return Row(at, {"text": text}, fault)
