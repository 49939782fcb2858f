"""From the ids in a file to the names of labels, decided once per split from all its ids, never silently."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from labeltune.errors import DataError, nearest

LabelNames = Sequence[str] | Mapping[str, str]


def label_key(value: object) -> str | None:
    """A label cell as text: whole numbers without `.0`, truth values in lower case; None where it is no label."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None


def resolve(names: LabelNames, seen: Collection[str], at: str) -> tuple[Mapping[str, str] | None, str | None]:
    """The table id -> name for a split that holds the cells `seen`, and a sentence where it had to be found out.

    A split whose cells are names already has no table. A split whose ids run exactly 1 … n where the n names count
    from 0 (or the other way round) is mapped in order. A *list* of names does not say where it counts from, so a split
    that has neither id 0 nor id n is refused; a table is taken at its word.

    Raises:
        DataError: an id without a name, ids and names mixed, or ids that fit two countings.
    """
    table = dict(names) if isinstance(names, Mapping) else {str(index): name for index, name in enumerate(names)}
    unknown = sorted(set(seen) - set(table))
    if unknown and set(seen) <= set(table.values()):
        return None, None
    if not unknown:
        if seen and not isinstance(names, Mapping) and "0" not in seen:
            raise _two_countings(table, seen, at)
        return table, None
    other = _recounted(table, seen)
    if other is None:
        raise _nameless(unknown[0], table, at)
    first = next(iter(other))
    return other, f"{at}: label ids count from {first}, so {first} is {other[first]!r}, the first of the label names"


def _recounted(table: Mapping[str, str], seen: Collection[str]) -> dict[str, str] | None:
    """The names in order on 1 … n where the table counts 0 … n - 1, or the other way round; all ids must be seen."""
    from_0, from_1 = _counted(len(table), 0), _counted(len(table), 1)
    for own, theirs in ((from_0, from_1), (from_1, from_0)):
        if set(table) == set(own) and set(seen) == set(theirs):
            return dict(zip(theirs, (table[key] for key in own), strict=True))
    return None


def _counted(size: int, first: int) -> list[str]:
    return [str(number) for number in range(first, first + size)]


def _two_countings(table: Mapping[str, str], seen: Collection[str], at: str) -> DataError:
    ids = ", ".join(sorted(seen)[:5])
    pairs = ", ".join(f'"{key}" = "{name}"' for key, name in list(table.items())[:2])
    message = f"the label ids ({ids}) may count from 0 or from 1, and data.label_names is a list"
    return DataError(message, at=at, hint=f"write the table: data.label_names = {{{pairs}, …}}")


def _nameless(value: str, table: Mapping[str, str], at: str) -> DataError:
    message = f"the label {value!r} has no name in data.label_names ({len(table)} names, ids {_listed(table)})"
    return DataError(message, at=at, hint=nearest(value, table.values()) + "; or name it in data.label_names")


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
