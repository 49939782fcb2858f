"""The table of tasks: everything that differs between them is in its row, and no other file compares their names."""

from labeltune.tasks.calibration import Calibration
from labeltune.tasks.classification import Classification
from labeltune.tasks.multilabel import Multilabel
from labeltune.tasks.ordinal import Ordinal
from labeltune.tasks.regression import Regression
from labeltune.tasks.tagging import Tagging
from labeltune.tasks.task import Decisions, Loss, Task

TASKS: dict[str, Task] = {row.name: row for row in (Classification(), Multilabel(), Regression(), Ordinal(), Tagging())}

__all__ = ["TASKS", "Calibration", "Decisions", "Loss", "Task"]
