"""Answered rows as Arrow columns, as Parquet keeps them: input columns by what they hold, answers by what they are.

Scores are float32; `spans` is a list of structs, `scores` a struct with a field for each label. A column whose rows
hold values of several kinds is written as text: strings as they are, all else as JSON. So are objects with more keys
than `WIDE` in all, for each row of a struct has a place for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from labeltune.answers import Answered
from labeltune.storage import to_json

SPAN = pa.struct(
    [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("score", pa.float32()), ("text", pa.string())]
)
PLAIN = {
    "label": pa.string(),
    "score": pa.float32(),
    "labels": pa.list_(pa.string()),
    "value": pa.float64(),
    "spans": pa.list_(SPAN),
}
WIDE = 256
ANSWERS = b"answers"
"""Where a table's schema says which of its columns are answers."""


def table_of(rows: Sequence[Answered], labels: Sequence[str], *, nested: bool = True) -> pa.Table:
    """The rows of a shard; each column's type is that of its own values.

    labels: those that the run knows. nested: input columns may be lists and structs; else these are JSON already.
    """
    names = dict.fromkeys(name for row in rows for name in row.fields)
    answers = dict.fromkeys(name for row in rows for name in row.answer)
    columns = {name: _column([row.fields.get(name) for row in rows], nested) for name in names}
    for name in answers:
        kind = pa.struct([(label, pa.float32()) for label in labels]) if name == "scores" else PLAIN[name]
        columns[name] = pa.array([row.answer.get(name) for row in rows], kind)
    return pa.table(columns).replace_schema_metadata({ANSWERS: json.dumps(list(answers))})


def _column(values: list[Any], nested: bool) -> pa.Array:
    if _is_wide(values) if nested else any(isinstance(value, dict | list) for value in values):
        return pa.array(map(_text, values), pa.string())
    try:
        column = pa.array(values)
    except (ValueError, TypeError, OverflowError):  # of several kinds, a number too large
        return pa.array(map(_text, values), pa.string())
    return pa.array(map(_text, values), pa.string()) if _has_nothing(column.type) else column


def _is_wide(values: list[Any]) -> bool:
    """Whether the objects have too many keys in all."""
    keys: set[str] = set()
    for value in values:
        if isinstance(value, dict):
            keys.update(value)
        if len(keys) > WIDE:
            return True
    return False


def _has_nothing(kind: pa.DataType) -> bool:
    """Whether objects without a field are in it, which Parquet cannot write."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_nothing(part.type) for part in kind)
    return bool(pa.types.is_list(kind)) and _has_nothing(kind.value_type)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value, sort=False)


# Shards of several types as one table


def joined_schema(
    schemas: Callable[[], Iterator[pa.Schema]],
    columns: Callable[[list[str]], Iterator[pa.Table]],
    given: pa.Schema | None,
) -> pa.Schema:
    """The schema that all shards' rows have room in: the input's columns, then the answers.

    schemas: those of the shards. columns: some columns of each shard. given: the schema of the input, where it had one:
    a column has its type there if every value goes back into it, else one that holds all shards' values, else text.
    """
    types: dict[str, pa.DataType] = {}
    answers: dict[str, pa.DataType] = {}
    for schema in schemas():
        own = json.loads(schema.metadata[ANSWERS])
        for field in schema:
            side = answers if field.name in own else types
            side[field.name] = _both(side.get(field.name, pa.null()), field.type)
    choices = {name: [*_given(name, given), kind, pa.string()] for name, kind in types.items()}
    doubtful = [name for name in types if any(not _is(name, choices[name][0], schema) for schema in schemas())]
    for table in columns(doubtful) if doubtful else ():
        for name in doubtful:
            choices[name] = [kind for kind in choices[name] if _goes(table, name, kind)]
    return pa.schema([*((name, kinds[0]) for name, kinds in choices.items()), *answers.items()])


def _is(name: str, kind: pa.DataType, schema: pa.Schema) -> bool:
    """Whether a shard's column, if it is there, has this type already."""
    return name not in schema.names or bool(schema.field(name).type.equals(kind))


def _both(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type for the values of two; text where there is no other."""
    if one.equals(other):
        return one
    schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowTypeError:
        return pa.string()


def _given(name: str, given: pa.Schema | None) -> list[pa.DataType]:
    """The type that a column had in the input, if it had one there."""
    if given is None:
        return []
    while name not in given.names and name.startswith("input_"):
        name = name.removeprefix("input_")
    return [given.field(name).type] if name in given.names else []


def _goes(table: pa.Table, name: str, kind: pa.DataType) -> bool:
    if name not in table.schema.names:
        return True
    if _is_bytes(kind) and pa.types.is_string(table[name].type):  # words about bytes, which Arrow would take for them
        return False
    try:
        _cast(table[name], kind)
    except (pa.ArrowException, ValueError, TypeError):
        return False
    return True


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A shard's rows under the schema of all: absent columns are null, other types are cast or said as text."""
    columns = [
        _cast(table[field.name], field.type) if field.name in table.schema.names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    if pa.types.is_string(kind):
        return pa.chunked_array([pa.array(map(_text, column.to_pylist()), kind)])
    if pa.types.is_binary(kind) and pa.types.is_struct(column.type):  # as rows say bytes: {"bytes": "00ff"}
        values = [None if cell is None else bytes.fromhex(cell["bytes"]) for cell in column.to_pylist()]
        return pa.chunked_array([pa.array(values, kind)])
    if pa.types.is_struct(kind) or pa.types.is_list(kind):
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
    return column.cast(kind)


# Tables as lines


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _in_json(value: Any) -> Any:
    """Bytes as rows say them: {"bytes": "00ff"}."""
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def cells(table: pa.Table) -> Iterator[tuple[str | None, ...]]:
    """The rows as a CSV file has them: lists and structs as JSON, nothing for null."""
    columns = []
    for column in table.columns:
        if pa.types.is_nested(column.type) or pa.types.is_null(column.type) or _is_bytes(column.type):
            columns.append([_text(_in_json(value)) for value in column.to_pylist()])
        else:
            columns.append(column.cast(pa.string()).to_pylist())
    yield from zip(*columns, strict=True)
