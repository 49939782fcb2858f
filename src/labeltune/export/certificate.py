"""The certificate beside an export: loaded anew from the disk by its own runtime, it answers as the run does.

In fp32 no logit may differ by more than 1e-4 × max(1, the largest logit), and every answer must be equal; else the
export is refused. In 16 bits the change is reported, and whoever exports falls back to fp32 where an answer changed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from labeltune.errors import RunError
from labeltune.export.tuned import Answers, Tuned
from labeltune.run import FORMAT
from labeltune.storage import sha256_file, write_atomic, write_json

FILE, SUMMARY = "certificate.json", "CERTIFICATE.md"
TOLERANCE = 1e-4


class ParityError(RunError):
    """An export that does not answer as its run does."""


@dataclass(frozen=True)
class Change:
    """How two sets of answers differ. bound: what `max_logit_change` may be in fp32."""

    rows: int
    targets: int
    max_logit: float
    max_logit_change: float
    bound: float
    rows_with_another_answer: int

    @property
    def holds(self) -> bool:
        """Whether they are the same in fp32."""
        return self.max_logit_change <= self.bound and not self.rows_with_another_answer

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.rows:,} dev rows, {self.targets:,} targets: logits differ by at most {self.max_logit_change:.2e} "
            f"(bound {self.bound:.2e}), {self.rows_with_another_answer:,} rows have another answer"
        )


@dataclass(frozen=True)
class Certificate:
    """What was compared, with what, and how it came out.

    change: of the export against the run in fp32. own: of the run in its own dtype against itself in fp32.
    given_up: what was asked for and not kept, and why. notes: what a user of the export must know.
    """

    format: str
    dtype: str
    run: str
    run_sha256: str
    dev: Mapping[str, Any]
    runtime: str
    change: Change
    own: Change | None = None
    own_dtype: str | None = None
    given_up: Sequence[str] = ()
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    time: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def compare(expected: Answers, found: Answers) -> Change:
    """How `found` differs from `expected`; logits that are no numbers differ without bound."""
    largest = float(np.abs(expected.logits).max(initial=0.0))
    differences = np.abs(found.logits.astype(np.float64) - expected.logits)
    change = float(differences.max(initial=0.0))
    return Change(
        len(expected.answers),
        len(expected.logits),
        largest,
        change if np.isfinite(change) else float(np.finfo(np.float64).max),
        TOLERANCE * max(1.0, largest),
        sum(one != other for one, other in zip(expected.answers, found.answers, strict=True)),
    )


def certify(
    tuned: Tuned,
    folder: Path,
    found: Answers,
    *,
    format_: str,
    dtype: str,
    runtime: str,
    given_up: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Certificate:
    """The certificate of the export in `folder`, which answered `found`."""
    own = compare(tuned.expected, tuned.own) if tuned.own else None
    return Certificate(
        format=format_,
        dtype=dtype,
        run=tuned.run.folder.name,
        run_sha256=sha256_file(tuned.run.folder / FORMAT),
        dev={name: tuned.facts[name] for name in ("source", "sha256", "content", "rows")},
        runtime=runtime,
        change=compare(tuned.expected, found),
        own=own,
        own_dtype=tuned.run.config.model.dtype if own else None,
        given_up=tuple(given_up),
        notes=tuple(notes),
        versions={"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers")},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        files=_sums(folder),
    )


def write(certificate: Certificate, folder: Path) -> None:
    """`certificate.json`, and the same in words."""
    write_json(folder / FILE, asdict(certificate) | {"holds": certificate.change.holds})
    write_atomic(folder / SUMMARY, summary(certificate))


def summary(certificate: Certificate) -> str:
    """The certificate in words."""
    lines = [
        f"# {certificate.run} as {certificate.format}, {certificate.dtype}",
        "",
        f"Loaded from this folder by {certificate.runtime} and compared with the run in fp32 on its dev rows "
        f"(`{certificate.dev['source']}`).",
        "",
        f"- {certificate.change.sentence()}.",
    ]
    if certificate.own:
        lines.append(f"- The run itself in {certificate.own_dtype}, against fp32: {certificate.own.sentence()}.")
    lines += [f"- Given up: {sentence}." for sentence in certificate.given_up]
    lines += [f"- {sentence}." for sentence in certificate.notes]
    return "\n".join([*lines, "", f"`{FILE}` has the hashes of the files and the versions.", ""])


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, SUMMARY))
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
