"""Counts in sentences."""


def counted(count: int, one: str, many: str) -> str:
    """A count and the words that agree with it.

    >>> counted(1, "row repeats", "rows repeat"), counted(2000, "row repeats", "rows repeat")
    ('1 row repeats', '2,000 rows repeat')
    """
    return f"{count:,} {one if count == 1 else many}"
