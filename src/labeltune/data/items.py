"""Rows one at a time, as a trained run reads them: what servers and exported graphs are handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from labeltune.data.columns import find_columns, kind_of, refuse_another_text
from labeltune.data.examples import Reading
from labeltune.data.readers.rows import Row
from labeltune.data.settings import DataConfig
from labeltune.data.templates import parse
from labeltune.errors import DataError
from labeltune.schema import Example

TEXT = "text"


@dataclass(frozen=True)
class Items:
    """Texts and rows into examples. config: the run's; columns that a row does not have are guessed anew."""

    config: DataConfig
    task: str

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields that the template joins, in order; `text` without a template."""
        template = self.config.template
        return tuple(dict.fromkeys(parse(template).fields)) if template else (TEXT,)

    def read(self, item: str | Mapping[str, object], at: str) -> Example:
        """A text, or a row with the columns of the training data, as an example.

        Raises:
            DataError: no text, several fields where one text is given, columns that cannot be told.
        """
        if isinstance(item, str):
            if len(self.fields) > 1:
                hint = "give a row with " + ", ".join(map(repr, self.fields))
                raise DataError("this run reads several fields", at=at, hint=hint)
            return self._plain.example(Row(at, {self.fields[0]: item}))
        row = dict(item)
        reading = self._reading(row, self.of_rows, at)
        refuse_another_text(reading.columns, self.config, at)
        return reading.example(Row(at, row))

    @cached_property
    def of_rows(self) -> DataConfig:
        """The settings that rows are read with: each is answered, or refused."""
        return self.config.model_copy(update={"on_bad_row": "error"})

    @cached_property
    def of_texts(self) -> DataConfig:
        """The settings that texts alone are read with, each as the first of `fields`."""
        if self.fields[0] != TEXT:
            return self.of_rows
        given = {"text": TEXT} if self.config.text or not self.config.template else {}
        return self.of_rows.model_copy(update={"tokens": None, **given})

    @cached_property
    def _plain(self) -> Reading:
        return self._reading({self.fields[0]: "a"}, self.of_texts, "texts")

    def _reading(self, row: Mapping[str, object], config: DataConfig, at: str) -> Reading:
        columns = find_columns([row], config, kind_of(self.task), labelled=False, at=at, strict=False)
        return Reading(columns, config)
