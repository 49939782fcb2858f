"""What a user can fix: one small tree of errors, each a sentence with an address and a way out.

    LabeltuneError
    ├── DataError       a row, a file, a label, a template
    ├── SettingsError   an unknown or impossible setting
    ├── ModelError      a backbone that is missing, incomplete or cannot do what is asked
    └── RunError        a run folder that is missing, changed, locked or already there

Only the command line catches them. Everything else that is raised is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class LabeltuneError(Exception):
    """A sentence a user can act on: `at: message; hint`.

    `at` is the address of the fault (`train.jsonl:17`, `model.pooling`), `hint` the way out.
    """

    exit_code = 1

    def __init__(self, message: str, *, at: str | None = None, hint: str | None = None) -> None:
        self.message, self.at, self.hint = message, at, hint
        super().__init__((f"{at}: " if at else "") + message + (f"; {hint}" if hint else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.at, self.hint))


def _rebuild(kind: type[LabeltuneError], message: str, at: str | None, hint: str | None) -> LabeltuneError:
    return kind(message, at=at, hint=hint)


class DataError(LabeltuneError):
    """A row, a file, a label or a template that cannot be used."""


class SettingsError(LabeltuneError):
    """An unknown, ill-typed or impossible setting."""


class ModelError(LabeltuneError):
    """A backbone that is missing, incomplete, or cannot do what the settings ask of it."""


class RunError(LabeltuneError):
    """A run folder that is missing, changed, incomplete, locked, or already there."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'lr'?`, or the whole list where nothing is near: a way out for an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # `learning_rate` for `train.lr`: compare the last part alone
        tails = {option.rsplit(".", 1)[-1]: option for option in known}
        close = [tails[t] for t in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.6)]
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(map(str, known))
