"""What an adaptation looks like on a terminal: what was found, held-out figures, the pace and the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import TaskID

from labeltune.adaptation.adapt import Looked, Ready
from labeltune.adaptation.loop import Step
from labeltune.bars import Bars
from labeltune.duration import duration
from labeltune.facts import Checked, Said


class AdaptScreen(Bars):
    """A listener of `adapt` that draws; where there is no terminal it prints a line per look at the held-out text."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._task: TaskID | None = None
        self._loss = 0.0

    def see(self, fact: object) -> None:
        """Show one fact."""
        if isinstance(fact, Said):
            self.say(fact.text)
        elif isinstance(fact, Checked):
            self.say(f"self-check: {fact.report.layers} layers, Company and Sight hold")
        elif isinstance(fact, Ready):
            self._ready(fact)
        elif isinstance(fact, Step):
            self._step(fact)
        elif isinstance(fact, Looked) and (fact.score or fact.pace):
            self._looked(fact)

    def _ready(self, fact: Ready) -> None:
        adapt = fact.config.adapt
        self.say(
            f"{adapt.objective}: {fact.trained_parameters:,} trained parameters, {fact.total:,} steps of up to "
            f"{adapt.batch_tokens:,} tokens, {adapt.optimiser} at {adapt.lr:.1e}"
        )
        if fact.step:
            self.say(f"going on at step {fact.step:,}")
        self._task = self.bars.add_task("training", total=fact.total, completed=fact.step, facts="")

    def _step(self, step: Step) -> None:
        self._loss = step.loss if not self._loss else 0.95 * self._loss + 0.05 * step.loss
        if self._task is not None:
            self.bars.update(self._task, completed=step.step, facts=f"epoch {step.epoch}  loss {self._loss:.4f}")

    def _looked(self, fact: Looked) -> None:
        parts = [f"step {fact.step:>7,}"]
        if self._loss:
            parts.append(f"train loss {self._loss:.4f}")
        if fact.score is not None:
            parts.append(f"held-out loss {fact.score.loss:.4f}")
        if fact.score is not None and fact.score.bits_per_byte is not None:
            parts.append(f"{fact.score.bits_per_byte:.4f} bits per byte")
        if fact.pace:
            parts.append(f"{fact.pace:,.0f} tokens/s")
        if fact.seconds_left:
            parts.append(f"{duration(fact.seconds_left)} left")
        self.say("  ".join(parts))
