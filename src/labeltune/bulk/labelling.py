"""`labeltune predict`: the rows of files, in order, each with its answer, to standard output or into a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeltune.answers import Answered, Wish
from labeltune.bulk.backends import TORCH, How
from labeltune.bulk.engines import ENGINES
from labeltune.bulk.forms import form_of, line
from labeltune.bulk.inputs import rows_in, sources_of
from labeltune.bulk.shards import Shards
from labeltune.config import with_settings
from labeltune.data.columns import is_another_text
from labeltune.data.datasets import QUARANTINE
from labeltune.data.readers import Source, Unlabelled
from labeltune.data.settings import DataConfig
from labeltune.data.streams import Stream, files_of, open_stream
from labeltune.data.survey import Quarantine
from labeltune.errors import DataError, SettingsError, nearest
from labeltune.folder import refuse_inside
from labeltune.inference import CHUNK
from labeltune.portions import Portion, portions
from labeltune.predict import of_new_rows
from labeltune.run import FORMAT, Run, open_run
from labeltune.storage import atomic_file, is_special, is_there, refuse_file, sha256_file, told
from labeltune.wording import counted


class Changed(DataError):
    """What was answered is no answer to the file any more."""


class Watch:
    """Who is told how far it is; this one does not care."""

    def begin(self, rows: int | None) -> None:
        """It begins; about how many rows there are, None where nobody can tell."""

    def kept(self, rows: int) -> None:
        """So many rows have their answers from an earlier start."""

    def advance(self, rows: int) -> None:
        """So many rows more have been answered."""

    def say(self, sentence: str) -> None:
        """Something that a person should know."""


@dataclass(frozen=True)
class Job:
    """What is to be answered, and how; opened and checked, nothing loaded.

    rows: those of a portion, which are sorted by length together and, in a file, are one shard.
    said: what was guessed of the files, in sentences. quarantine: where rows go that cannot be used.
    """

    run: Run
    how: How
    sources: Sequence[Source]
    data: DataConfig
    rows: int = CHUNK
    said: Sequence[str] = ()
    quarantine: Path = Path(QUARANTINE)
    streams: list[Stream] = field(default_factory=list)

    def portions(self, stack: ExitStack, *, again: bool = False) -> Iterator[Portion]:
        """The portions of all rows. Raises DataError where a row cannot be used, when its turn comes.

        again: an earlier call may have left a quarantine, which is replaced.
        """
        quarantine = stack.enter_context(Quarantine(self.quarantine, replace_old=again))
        task = self.run.config.task
        self.streams[:] = [open_stream(source, self.data, task, quarantine) for source in self.sources]
        return portions(chain.from_iterable(self.streams), self.data, self.rows)

    def tell_bad(self, watch: Watch) -> None:
        """Say how many rows have no answer."""
        for stream in self.streams:
            if stream.bad_rows:
                kept = f" (they are in {self.quarantine})" if self.data.on_bad_row == "quarantine" else ""
                rows, have = ("row", "has") if stream.bad_rows == 1 else ("rows", "have")
                told = f"{stream.bad_rows:,} {rows} could not be used and {have} no answer{kept}"
                watch.say(f"{stream.source.name}: {told}")

    def manifest(self) -> dict[str, Any]:
        """All that decides the answers, to be compared when it goes on."""
        settings = {name: value for name, value in self.how.settings.items() if name != "data.on_bad_row"}
        return {
            "run": sha256_file(self.run.folder / FORMAT),
            "sources": [[source.name, source.format] for source in self.sources],
            "files": [[str(Path(path).resolve()), *stamp] for path, *stamp in files_of(self.sources)],
            "settings": settings,
            "min_score": self.how.wish.min_score,
            "scores": self.how.wish.scores,
            "backend": self.how.backend,
            "shard_rows": self.rows,
        }


def open_job(
    run: str | Path,
    files: Sequence[str | Path],
    *,
    min_score: float | None = None,
    scores: bool = False,
    settings: Mapping[str, Any] | None = None,
    backend: str = TORCH,
    rows: int = CHUNK,
) -> Job:
    """Open the run and look at the beginning of each file. `-` is standard input: a JSON object or a text a line.

    Raises:
        RunError: the run folder is incomplete. DataError: a file that cannot be read, columns that cannot be told.
        SettingsError: one that may not differ, or a backend that is none.
    """
    opened = open_run(run)
    how = How(opened.folder.resolve(), settings or {}, Wish(min_score, scores), backend)
    data = with_settings(opened.config, of_new_rows(settings)).data
    sources = sources_of(files, data, _known(opened))
    streams = [open_stream(source, data, opened.config.task) for source in sources]  # before any time is spent
    said = (*chain.from_iterable(source.said for source in sources), *chain.from_iterable(map(_guesses, streams)))
    return Job(opened, how, sources, data, rows, said)


def _known(run: Run) -> Unlabelled:
    """What may stand before a text as its label: the run's labels, and the ids that they have in its data."""
    given = run.config.data.label_names
    ids = given if isinstance(given, dict) else map(str, range(len(given or ())))
    task = run.config.task
    return Unlabelled({*run.labels.names, *ids}, tagged=task == "tagging", numbers=task == "regression")


def _guesses(stream: Stream) -> Iterator[str]:
    """Whether the texts come from another column than in training."""
    if is_another_text(stream.columns, stream.config):
        column, trained = stream.columns.text, stream.config.text
        yield f"{stream.source.name}: the text is read from {column!r}; in training it was {trained!r} (data.text)"


def predict_files(
    run: str | Path, files: Sequence[str | Path], *, watch: Watch | None = None, **how: Any
) -> Iterator[dict[str, Any]]:
    """The rows of all files in order, each with its answer; `how` is as in `open_job`."""
    return (answered.row for answered in _answered(open_job(run, files, **how), watch or Watch()))


def _answered(job: Job, watch: Watch) -> Iterator[Answered]:
    _begin(job, watch)
    with ExitStack() as stack:
        for _, rows in ENGINES["local"](job.how, job.run, None, job.portions(stack), watch.advance):
            yield from rows
    job.tell_bad(watch)


def _begin(job: Job, watch: Watch) -> None:
    watch.begin(rows_in(job.sources))
    for sentence in job.said:
        watch.say(sentence)


def predict_to(
    to: Path,
    job: Job,
    *,
    watch: Watch | None = None,
    resume: bool = False,
    engine: str = "local",
    workers: int | None = None,
) -> None:
    """Write the rows with their answers, in the form that the suffix of `to` says; it is there whole or not at all.

    resume: go on with what an interrupted call has left beside `to`. engine: `local` or `ray`, with so many workers.

    Raises:
        RunError: `to` is there already, or what lies beside it does not belong to this. DataError: a row.
    """
    watch = watch or Watch()
    if engine not in ENGINES:
        raise SettingsError(f"{engine!r} is no engine", at="--engine", hint=nearest(engine, ENGINES))
    with told(to):
        special = is_special(to)
    if special:  # a pipe or a device: nothing to go on with
        with atomic_file(to) as there, there.open("w", encoding="utf-8") as file:
            file.writelines(map(line, _answered(job, watch)))
        return
    once = any(source.format == "stream" for source in job.sources)
    if resume and once:
        raise SettingsError("standard input comes once only", at="--resume", hint="write it to a file first")
    if to.is_dir():
        refuse_file(to)
    refuse_inside(to, [str(path) for source in job.sources for path in source.files if path.is_dir()])
    job = replace(job, quarantine=to.with_name(f"{to.name}.{QUARANTINE}"))
    shards = Shards(to, form_of(to.name), job.run.labels.names)
    taken = job.data.on_bad_row == "quarantine" and is_there(job.quarantine)
    if taken and not (resume and is_there(shards.folder)):  # before hours are spent
        hint = "look at it, then move it away"
        raise DataError("an earlier quarantine is already there", at=str(job.quarantine), hint=hint)
    with shards.opened({**job.manifest(), "form": shards.form.ending}, resume=resume) as open_:
        if not open_:
            return
        try:
            count = _fill(shards, job, watch, resume, engine, workers)
            shards.join(count, _schema(job.sources))
        except BaseException as error:  # Ctrl-C too: whatever it is goes on its way, after a word on what is kept
            if once:
                shards.drop()
            elif not isinstance(error, Changed) and (kept := len(shards.done())):
                shards_kept = counted(kept, "shard", "shards")
                watch.say(f"{shards_kept} of {job.rows:,} rows kept: the same command with --resume goes on")
            raise


def _fill(shards: Shards, job: Job, watch: Watch, again: bool, engine: str, workers: int | None) -> int:
    """Write the shards that are not there; how many there are in all."""
    stamps = files_of(job.sources)
    _begin(job, watch)
    count = 0

    def missing(all_: Iterable[Portion]) -> Iterator[Portion]:
        nonlocal count
        for portion in all_:
            count += 1
            if shards.path(portion.number).exists():
                watch.kept(len(portion.rows))
            else:
                yield portion

    with ExitStack() as stack:
        left = missing(job.portions(stack, again=again))
        for number, rows in ENGINES[engine](job.how, job.run, workers, left, watch.advance):
            shards.write(number, rows)
    if other := sorted({*stamps} ^ {*files_of(job.sources)}):
        hint = f"remove {shards.folder} to begin again"
        raise Changed("the file has changed, come or gone while it was read", at=other[0][0], hint=hint)
    job.tell_bad(watch)
    return count


def _schema(sources: Sequence[Source]) -> pa.Schema | None:
    """The columns of the input where all of it is Parquet."""
    if not all(source.format == "parquet" for source in sources):
        return None
    schemas = [pq.read_schema(path).remove_metadata() for source in sources for path in source.files]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return None
