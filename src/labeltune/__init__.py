"""labeltune: turn any open decoder LLM into a classifier or a tagger.

    run = labeltune.train("train.jsonl", model="meta-llama/Llama-3.2-1B", out="runs/intents")
    predictor = labeltune.load("runs/intents")
    predictor.predict(["where is my parcel?"])

The names below are the public face; each is imported when first used, so `import labeltune` costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labeltune.adaptation.adapt import adapt as adapt
    from labeltune.config import Config as Config
    from labeltune.errors import DataError as DataError
    from labeltune.errors import LabeltuneError as LabeltuneError
    from labeltune.errors import ModelError as ModelError
    from labeltune.errors import RunError as RunError
    from labeltune.errors import SettingsError as SettingsError
    from labeltune.fitting import train as train
    from labeltune.inspection import inspect as inspect
    from labeltune.interrupt import Interrupted as Interrupted
    from labeltune.planning import Plan as Plan
    from labeltune.planning import plan as plan
    from labeltune.predict import Predictor as Predictor
    from labeltune.predict import evaluate as evaluate
    from labeltune.predict import load as load
    from labeltune.recipe import draft_recipe as draft_recipe
    from labeltune.run import Run as Run
    from labeltune.run import open_run as open_run
    from labeltune.schema import Example as Example
    from labeltune.schema import Prediction as Prediction
    from labeltune.schema import Span as Span
    from labeltune.schema import SpanPrediction as SpanPrediction
    from labeltune.sweeps.planning import SweepPlan as SweepPlan
    from labeltune.sweeps.planning import plan_sweep as plan_sweep
    from labeltune.sweeps.sweeping import Sweep as Sweep
    from labeltune.sweeps.sweeping import sweep as sweep

_HOMES = {
    "Config": "config",
    "DataError": "errors",
    "Example": "schema",
    "Interrupted": "interrupt",
    "LabeltuneError": "errors",
    "ModelError": "errors",
    "Plan": "planning",
    "Prediction": "schema",
    "Predictor": "predict",
    "Run": "run",
    "RunError": "errors",
    "SettingsError": "errors",
    "Span": "schema",
    "SpanPrediction": "schema",
    "Sweep": "sweeps.sweeping",
    "SweepPlan": "sweeps.planning",
    "adapt": "adaptation.adapt",
    "draft_recipe": "recipe",
    "evaluate": "predict",
    "inspect": "inspection",
    "load": "predict",
    "open_run": "run",
    "plan": "planning",
    "plan_sweep": "sweeps.planning",
    "sweep": "sweeps.sweeping",
    "train": "fitting",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("labeltune")
    if name not in _HOMES:
        raise AttributeError(f"module 'labeltune' has no attribute {name!r}")
    value = getattr(import_module(f"labeltune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
