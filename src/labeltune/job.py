"""One training's work in its folder: prepare, begin or go on, follow the steps, score, write.

`fitting.train` does it for one, a sweep for many that share a bench and a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from labeltune.assembly import Assembly, assemble, task_of, untested
from labeltune.bench import Bench, Given, encoding_key
from labeltune.card import write_card
from labeltune.config import Config, switches, to_toml, with_settings
from labeltune.data.batches import MICRO_TOKENS
from labeltune.data.datasets import QUARANTINE, Dataset, Loaded
from labeltune.data.specials import unknown_token
from labeltune.data.store import Store
from labeltune.errors import SettingsError
from labeltune.facts import Checked, Listener, Ready, Said, Scored
from labeltune.folder import keep_rows, parts
from labeltune.inference import Labeller, NotFinite, caveats, lost
from labeltune.initial import start_from, with_unit
from labeltune.keys import Key
from labeltune.labels import LabelSet
from labeltune.ledger import Ledger
from labeltune.model.backbone import Place
from labeltune.model.checkpoints import read_config, resolve
from labeltune.model.crf import CRF
from labeltune.model.families import family_of
from labeltune.model.member import LabelModel
from labeltune.run import (
    BACKBONE,
    CONFIG,
    LOG,
    METRICS,
    TOKENIZER,
    WORK,
    Run,
    finite,
    plain_metrics,
    unseal,
    write_run,
)
from labeltune.schema import Example, Prediction
from labeltune.storage import append_jsonl, atomic_folder, read_jsonl, to_json, write_atomic, write_json
from labeltune.tasks import Calibration, Loss, Task
from labeltune.training.checkpoint import load_state, save_state
from labeltune.training.distributed import ALONE, World, held, shard
from labeltune.training.meter import Meter
from labeltune.training.schedule import scheduled
from labeltune.training.trainer import Step
from labeltune.training.trial import Trial, restore, state_of
from labeltune.wording import counted

CHECKPOINT = "checkpoint.safetensors"
FAILURES = {
    "diverged": (
        "the loss is no longer finite after step {:,}",
        "train into a new folder with a lower train.lr than {:g}",
    ),
    "out of memory": (
        "a single row needs more memory than there is, after step {:,}",
        "lower data.max_tokens, set model.checkpointing = 'on', or choose a smaller backbone",
    ),
}
"""By a trial's status: why nothing is left of it, and the way out."""


@dataclass(frozen=True)
class Job:
    """What one training works on.

    dev: the rows that choose the weights, and the same encoded. lost: what was cut off the training rows.
    world: the processes that do it together.
    """

    folder: Path
    loaded: Loaded
    assembly: Assembly
    trial: Trial
    labeller: Labeller
    dev: tuple[list[Example], Store]
    meter: Meter
    lost: Mapping[str, int]
    world: World = ALONE

    @property
    def checkpoint(self) -> Path:
        """Where the state of a single training lies."""
        return self.folder / WORK / CHECKPOINT


# Beginning


def prepare(
    config: Config,
    folder: Path,
    bench: Bench,
    listen: Listener,
    *,
    given: Given = (None, None, None),
    whole: bool = False,
    fresh: bool = True,
    world: World = ALONE,
) -> Job:
    """Load, check and encode everything; nothing is trained yet, and bad input stops here.

    whole: share a backbone with all its blocks, for others read deeper ones. fresh: no checkpoint will be taken up.
    """
    loaded, said = bench.open(config, given)
    for sentence in said:
        listen(Said(sentence))
    config = with_settings(config.model_copy(update={"data": loaded.config}), {"task": loaded.task})
    task = task_of(config)
    labels = task.label_set(loaded.train, config.data)
    if fresh:
        config = with_unit(config)
    config = config.model_copy(update={"head": task.in_units(config.head, loaded.train)})
    _refuse_impossible(config, task, labels)
    backbone = bench.backbone(config, None if whole else config.model.depth, _divider(config, world))
    if world.sharded:
        _refuse_rows(backbone.config.model_type, backbone.packed)
        count = f"{held(backbone.model):,} parameters in this one"
        listen(Said(f"the backbone is divided among {world.size} processes: {count}"))
    assembly = assemble(config, labels, bench.tokenizer(config), backbone)
    listen(Checked(assembly.selfcheck))
    if warning := untested(backbone.device):
        listen(Said(f"warning: {warning}"))
    rows = bench.encoded(loaded.train, assembly)
    assembly = replace(assembly, config=_of_length(assembly.config, rows))
    dev_rows, dev_store = bench.examples(loaded.dev), bench.encoded(loaded.dev, assembly)
    cut = {"train": lost(task, loaded.train, rows), "dev": lost(task, dev_rows, dev_store)}
    for sentence in _unreadable(dev_store, assembly):
        listen(Said(sentence))
    for name, counts in cut.items():
        for sentence in caveats({"lost": counts}):
            listen(Said(f"{name}: {sentence}"))
    labeller = _labeller(assembly, world)
    trial = _trial(assembly, rows, lambda loss: _dev_figures(labeller, dev_rows, dev_store, loss))
    if config.train.init is not None and fresh:
        listen(Said(start_from(assembly, Path(config.train.init))))
    return Job(folder, loaded, assembly, trial, labeller, (dev_rows, dev_store), Meter(), cut["train"], world)


def _refuse_impossible(config: Config, task: Task, labels: LabelSet) -> None:
    """What can be refused before the backbone, which takes its time, is read."""
    task.higher_is_better(config.train.select or task.select)
    head: Any = SimpleNamespace(crf=CRF(task.width(labels)) if config.head.crf else None)
    task.loss(config.head, labels, np.ones(len(task.classes(labels)), dtype=np.int64), head)


def _of_length(config: Config, rows: Store) -> Config:
    """With the number of passes settled, for so many rows."""
    train = scheduled(config.train, len(rows), int(rows.lengths.sum()))
    return config.model_copy(update={"train": train})


def _divider(config: Config, world: World) -> Place | None:
    """What divides the backbone among the processes, where it is divided."""
    if not world.sharded:
        return None
    for name, value in (("lora.kind", config.lora.kind), ("model.quantization", config.model.quantization)):
        if value in ("full", "dora", "int8", "nf4"):
            message = f"a sharded backbone does not go with {value}"
            raise SettingsError(message, at=name, hint="set train.shard = false, or choose another")
    stock = read_config(resolve(config.model), config.model).get_text_config()
    _refuse_rows(stock.model_type, family_of(stock).packed)  # before the weights are read
    wide = config.model.dtype == "fp32" or (config.model.dtype == "auto" and not torch.cuda.is_available())
    return partial(shard, world=world, dtype=torch.float32 if wide else None)


def _refuse_rows(family: str, packed: bool) -> None:
    """Refuse to divide a backbone that runs in rows of equal length: one pass is as many forwards as it has lengths.

    Each process would wait for parts of the backbone at other moments than the others, and all of them for ever.
    """
    if not packed:
        message = f"a sharded backbone does not go with {family}, which runs in rows of equal length"
        hint = "set train.shard = false, or choose another family (llama, mistral, qwen3, gemma3, gpt_neox, …)"
        raise SettingsError(message, at="train.shard", hint=hint)


def begin(job: Job, checkpoint: Path, listen: Listener) -> None:
    """Write down what is trained on what, and take up the checkpoint, if there is one."""
    _settle_folder(job)
    before = _go_on(job, checkpoint)
    counts = {name: len(split) for name, split in parts(job.loaded).items()}
    trained = sum(p.numel() for p in job.trial.parameters.values())
    trial, assembly = job.trial, job.assembly
    if before not in (None, job.world.size):
        told = f"begun with {before} processes, goes on with {job.world.size}: the same but for rounding"
        listen(Said(f"this training was {told}"))
    listen(Ready(assembly.config, counts, len(assembly.labels), trained, trial.step, trial.order.total))


def _unreadable(dev: Store, assembly: Assembly) -> Iterator[str]:
    """Whether there is text that the tokenizer has no token for; the dev rows stand for all."""
    nothing = unknown_token(assembly.tokenizer)
    rows = 0 if nothing is None else sum(nothing in row.tokens for row in dev)
    if rows:
        of = f"{rows:,} of {len(dev):,} dev rows"
        yield f"warning: {of} hold text that the tokenizer has no token for; the model cannot read it"


def _labeller(assembly: Assembly, world: World) -> Labeller:
    model = LabelModel(assembly.backbone, [assembly.member])
    config = assembly.config
    return Labeller(
        model,
        assembly.task,
        assembly.labels,
        Calibration(),
        config.eval.batch_tokens or MICRO_TOKENS,
        switches(config),
        isinstance(config.data.train, dict),
        world.map,
        divides=not world.sharded,
    )


def _dev_figures(labeller: Labeller, examples: list[Example], rows: Store, loss: Loss) -> Mapping[str, float]:
    """The dev metrics; no numbers where the weights have run away, so that they are never the best."""
    try:
        return labeller.score(examples, rows, loss)
    except NotFinite:
        return dict.fromkeys(labeller.task.metrics, math.nan)


def _trial(assembly: Assembly, rows: Store, evaluate: Callable[[Loss], Mapping[str, float]]) -> Trial:
    config, task = assembly.config, assembly.task
    parameters = dict(assembly.member.named_parameters())
    if config.lora.kind == "full":
        body = assembly.backbone.model.named_parameters()
        parameters |= {f"{BACKBONE}.{name}": parameter for name, parameter in body}
    select = config.train.select or task.select
    counts = label_counts(rows, len(task.classes(assembly.labels)))
    loss = task.loss(config.head, assembly.labels, counts, assembly.member.head)
    return Trial(
        name=task.name,
        config=config.train,
        member=assembly.member,
        parameters=parameters,
        rows=rows,
        loss=loss,
        evaluate=lambda: evaluate(loss),
        select=(select, task.higher_is_better(select)),
        key=Key.of(config.train.seed).fold("trial"),
    )


def label_counts(rows: Store, width: int) -> np.ndarray:
    """How often each class is a training target, int64 (width); zeros where targets are numbers."""
    labels = rows.labels
    if labels.ndim == 2:
        return np.asarray(np.nan_to_num(labels).sum(0), dtype=np.int64)
    if not np.issubdtype(labels.dtype, np.integer):
        return np.zeros(width, dtype=np.int64)
    return np.bincount(labels[labels >= 0], minlength=width)


def _settle_folder(job: Job) -> None:
    """Write the settled settings and the splits, or compare them with those of the training that goes on."""
    keep_rows(job.folder, job.loaded, encoding_key(job.loaded.train, job.assembly))
    write_atomic(job.folder / CONFIG, to_toml(job.assembly.config))


def _go_on(job: Job, path: Path) -> int | None:
    """Take up the checkpoint, if there is one, and cut the log back to it; how many processes have written it."""
    log = job.folder / LOG
    kept: list[Mapping[str, Any]] = []
    processes: int | None = None
    if path.exists():
        state = load_state(path)
        restore(job.trial, state)
        job.meter.restore(state.facts["meter"])
        processes = state.facts["processes"]
        kept = [line for line in read_jsonl(log) if int(str(line["step"])) <= job.trial.step] if log.exists() else []
    write_atomic(log, "".join(to_json(line) + "\n" for line in kept))
    return processes


# Following


def follow(job: Job, step: Step) -> bool:
    """Count and log a step of the job's trial; whether a checkpoint is due."""
    job.meter.add(step.rows, step.tokens, step.seconds, step.padded_tokens)
    _log(job, step)
    every = job.trial.config.checkpoint_steps
    return step.last or (step.evaluation is not None if every is None else step.step % every == 0)


def _log(job: Job, step: Step) -> None:
    line: dict[str, Any] = {
        "step": step.step,
        "epoch": step.epoch,
        "loss": finite(step.loss),
        "lr": step.lr,
        "grad_norm": finite(step.grad_norm),
        "rows": step.rows,
        "tokens": step.tokens,
        "seconds": round(job.meter.seconds, 3),
    }
    if step.micro_tokens is not None:
        line["micro_tokens"] = step.micro_tokens
    if step.evaluation is not None:
        line |= {"dev": plain_metrics(step.evaluation.metrics), "best": step.evaluation.best}
    append_jsonl(job.folder / LOG, line)


def save_checkpoint(job: Job, path: Path) -> None:
    """Write all that the trial needs to go on elsewhere."""
    state = state_of(job.trial)
    facts = {**state.facts, "meter": job.meter.state(), "processes": job.world.size}
    save_state(path, replace(state, facts=facts))


# Ending


def decided(job: Job) -> Labeller:
    """Put the best weights in place, and fit on dev what decisions need."""
    job.trial.finish()
    return replace(job.labeller, calibration=job.labeller.calibrate(job.dev[1]))


def dev_answers(job: Job, labeller: Labeller) -> list[Prediction]:
    """What the finished model says of the dev rows, with every score."""
    return labeller.predict(*job.dev)


def report(labeller: Labeller, examples: list[Example], rows: Store, answers: list[Prediction]) -> dict[str, Any]:
    """The figures of answers, as `metrics.json` has them."""
    return plain_metrics(labeller.report(examples, rows, answers))


def final_evaluation(job: Job, labeller: Labeller, test: Dataset, *ledgers: Ledger) -> dict[str, Any]:
    """The test split's figures; the ledgers have the opening before the file is read."""
    for ledger in ledgers:
        ledger.note("final evaluation", test.source, rows=len(test), sha256=test.sha256)
    rows = list(test)
    store = Store.build(rows, job.assembly.encoder.encode_many)
    return report(labeller, rows, store, labeller.predict(rows, store))


def score(job: Job, listen: Listener, *ledgers: Ledger) -> tuple[dict[str, Any], Calibration]:
    """The figures of all splits, with the chosen weights and the calibration fitted on dev, as `predict` answers."""
    labeller = decided(job)
    dev = report(labeller, *job.dev, dev_answers(job, labeller))
    listen(Scored("dev", dev))
    figures = {"train": train_figures(job), "dev": dev}
    listen(Said(_spent(figures["train"])))
    if job.loaded.test is not None:
        figures["test"] = final_evaluation(job, labeller, job.loaded.test, *ledgers)
        listen(Scored("test", figures["test"]))
    if bad := bad_rows(job.loaded):
        listen(Said(f"{counted(bad, 'row', 'rows')} could not be used, and in no figure ({_way_of_bad_rows(job)})"))
    return figures, labeller.calibration


def write(job: Job, figures: Mapping[str, Any], calibration: Calibration, state: str) -> None:
    """Write the whole folder, and seal it."""
    config, member = job.assembly.config, job.assembly.member
    unseal(job.folder)
    member.save(job.folder, config.model.name, config.model.revision)
    if config.lora.kind == "full":
        with atomic_folder(job.folder / BACKBONE, replace=True) as partial:
            job.assembly.backbone.save(partial)
            job.assembly.tokenizer.save_pretrained(partial)  # so that it is a model to train on, too
    with atomic_folder(job.folder / TOKENIZER, replace=True) as partial:
        job.assembly.tokenizer.save_pretrained(partial)
    write_json(job.folder / METRICS, figures)
    run = Run(job.folder, config, job.assembly.labels, calibration.to_json(), state)
    write_card(run)
    write_run(run)


def bad_rows(loaded: Loaded) -> int:
    """Rows that could not be used; splits that were taken from one source share its count."""
    return sum({split.source: split.bad_rows for split in parts(loaded).values()}.values())


def _way_of_bad_rows(job: Job) -> str:
    kept = job.assembly.config.data.on_bad_row == "quarantine"
    return f"they are in {job.folder / QUARANTINE}" if kept else "skipped"


def train_figures(job: Job) -> dict[str, Any]:
    """What `metrics.json` says of the training itself."""
    trial = job.trial
    used = _utilisation(job)
    return job.meter.facts() | {
        **({} if used is None else {"mfu": round(used, 4)}),
        "status": trial.status,
        "steps": trial.step,
        "best_step": trial.best_step,
        "best_epoch": trial.best_epoch,
        "trained_parameters": sum(p.numel() for p in trial.parameters.values()),
        "bad_rows": bad_rows(job.loaded),
        **({"lost": dict(job.lost)} if job.lost else {}),
    }


def _utilisation(job: Job) -> float | None:
    blocks = job.assembly.backbone.blocks
    config = job.assembly.config
    more = config.model.checkpointing == "on" or config.lora.kind == "full"
    return job.meter.utilisation(sum(p.numel() for p in blocks.parameters()), 6.0 if more else 4.0)


def _spent(train: Mapping[str, Any]) -> str:
    return (
        f"training: {train['seconds']:,.1f} s in steps, {train['tokens_per_second']:,.0f} tokens a second, "
        f"peak memory {train['peak_memory_gib']:.2f} GiB"
    )
