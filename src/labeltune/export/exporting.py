"""Export a run: write it for another runtime, load it there, compare, and keep it only where it answers alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labeltune.errors import RunError, SettingsError, nearest
from labeltune.export import hub
from labeltune.export.certificate import Certificate, ParityError, certify, write
from labeltune.export.formats import FORMATS, Format
from labeltune.export.tuned import NotExpressible, Tuned, read
from labeltune.run import Run, open_run
from labeltune.storage import atomic_folder, told

EXPORTS, HALF = "exports", "bf16"


@dataclass(frozen=True)
class Export:
    """An export on the disk, and its certificate."""

    folder: Path
    certificate: Certificate


def export(
    run: str | Path,
    to: str,
    *,
    data: object = None,
    out: str | Path | None = None,
    dtype: str = "fp32",
    repo: str | None = None,
    private: bool = True,
    widget: Sequence[str] = (),
    api: hub.Api | None = None,
) -> Export:
    """Write a run for another runtime, with a certificate; a folder that does not answer as the run does never appears.

    to: a name of FORMATS. data: where the dev rows' file lies now. out: the new folder [RUN/exports/FORMAT].
    dtype: `fp32`, `bf16` (falls back to fp32 where a dev answer changes), `int8`.
    repo, private, widget: of `hub`: where it is pushed (nowhere without a name), and texts that its page shows.

    Raises:
        NotExpressible: the runtime has no words for the run. ParityError: it answers otherwise.
        DataError: the dev rows are not those of the training. RunError: the folder is there, or cannot be written.
    """
    form = _format(to, dtype)
    opened = open_run(run)
    folder = Path(out) if out is not None else opened.folder / EXPORTS / (to if dtype == "fp32" else f"{to}-{dtype}")
    with told(folder):
        if folder.exists():
            raise RunError("is already there", at=str(folder), hint="nothing was written; choose another --out")
    if (repo or widget) and not form.card:
        raise SettingsError(f"{to} is not pushed", at="--repo", hint="use --to hub")
    done = _export(opened, form, to, folder, data, dtype, widget)
    if repo:
        hub.push(folder, repo, private=private, api=api)
    return done


def _export(run: Run, form: Format, to: str, folder: Path, data: object, dtype: str, widget: Sequence[str]) -> Export:
    tuned = read(run, data)
    if found := list(form.reasons(tuned)):
        hint = "`onnx` and `openvino` are graphs of our own and may" if form.cuts else "predict with --backend torch"
        raise NotExpressible(f"{to} cannot express this run: {'; '.join(found)}", at=str(run.folder), hint=hint)
    with atomic_folder(folder) as partial:
        certificate = _tried(tuned, form, to, partial, dtype, ())
        if dtype == HALF and certificate.change.rows_with_another_answer:
            why = f"{dtype}: {certificate.change.rows_with_another_answer:,} dev rows got another answer"
            _empty(partial)
            certificate = _tried(tuned, form, to, partial, "fp32", (why,))
        if form.card:
            hub.write_card(tuned, certificate, partial, widget)
        write(certificate, partial)
    return Export(folder, certificate)


def _tried(tuned: Tuned, form: Format, to: str, folder: Path, dtype: str, given_up: tuple[str, ...]) -> Certificate:
    """Fill the folder and let it answer; in fp32 only an equal answer is kept."""
    form.write(tuned, folder, dtype)
    certificate = certify(
        tuned,
        folder,
        form.answer(tuned, folder),
        format_=to,
        dtype=dtype,
        runtime=form.runtime(),
        given_up=given_up,
        notes=list(_notes(tuned, form)),
    )
    if dtype == "fp32" and not certificate.change.holds:
        raise ParityError(
            f"the {to} export answers otherwise than the run: {certificate.change.sentence()}",
            at=str(tuned.run.folder),
            hint="nothing was kept; predict with --backend torch",
        )
    return certificate


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _notes(tuned: Tuned, form: Format) -> Iterator[str]:
    """What a user of the export must know."""
    if form.cuts:
        yield f"Texts of more than {tuned.config.data.max_tokens} tokens are cut: this runtime has no windows"
    if form.cuts and tuned.units:
        yield "A word's tag is that of its first token; labeltune takes the best legal sequence of them"
    if (limits := tuned.calibration.thresholds) is not None:
        pairs = zip(tuned.run.labels.names, limits, strict=True)
        yield "Labels are given from these probabilities on: " + ", ".join(f"{n} {limit:.4f}" for n, limit in pairs)
    if (temperature := tuned.predictor.labeller.calibration.temperature) != 1.0:
        yield f"The temperature of {temperature:.4g} is divided into the head"


def _format(to: str, dtype: str) -> Format:
    """The row of the table, or what is known instead."""
    if to not in FORMATS:
        raise SettingsError(f"{to!r} is no format", at="--to", hint=nearest(to, FORMATS))
    if dtype not in FORMATS[to].dtypes:
        hint = "it has " + ", ".join(FORMATS[to].dtypes)
        raise SettingsError(f"{to} is not written in {dtype!r}", at="--dtype", hint=hint)
    return FORMATS[to]
