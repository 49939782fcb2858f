"""Write the generated parts of docs/reference.md anew: commands, settings, metrics and names, as the code has them.

    python docs/generate.py

A part lies between `<!-- name -->` and `<!-- end of name -->`.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import labeltune
from labeltune.adaptation.settings import Adaptation
from labeltune.cli import app
from labeltune.config import describe
from labeltune.metrics import METRICS
from labeltune.serve.settings import Serving
from labeltune.sweeps.settings import SweepFile
from labeltune.tasks import TASKS

REFERENCE = Path(__file__).parent / "reference.md"


def settings() -> Iterator[str]:
    """A table of every setting."""
    yield from ("| setting | type | default | meaning |", "|---|---|---|---|")
    others = {"adapt": Adaptation, "serve": Serving, "sweep": SweepFile}
    for name, kind, default, meaning in [
        *describe(),
        *(row for n, root in others.items() for row in describe(n, root)),
    ]:
        yield f"| `{name}` | {_cell(kind)} | {f'`{_cell(default)}`' if default else ''} | {_cell(meaning)} |"


def commands() -> Iterator[str]:
    """Each command with its arguments and options."""
    yield from ("", "`labeltune --version` prints the version, `labeltune COMMAND --help` what follows.")
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ("", f"### `labeltune {name}`", "", command.help or "", "", "| | what |", "|---|---|")
        for parameter in command.params:
            yield f"| {_parameter(parameter)} | {_cell(parameter.help or '')} |"
    yield ""


def metrics() -> Iterator[str]:
    """What each figure is, which task has it, and whether more is better."""
    yield from ("| metric | what | better | tasks |", "|---|---|---|---|")
    for name, metric in METRICS.items():
        tasks = [f"`{task}`" for task, row in TASKS.items() if name in row.metrics]
        if tasks:
            better = "higher" if metric.higher else "lower"
            yield f"| `{name}` | {_cell(metric.about)} | {better} | {', '.join(tasks)} |"


def names() -> Iterator[str]:
    """The public names, and the first line on each."""
    yield from ("| name | what |", "|---|---|")
    for name in labeltune.__all__:
        about = inspect.getdoc(getattr(labeltune, name)) or ""
        yield f"| `labeltune.{name}` | {_cell(about.splitlines()[0])} |"


PARTS = {"commands": commands, "settings": settings, "metrics": metrics, "names": names}


def with_parts(page: str) -> str:
    """The page with its generated parts as the code has them."""
    for name, lines in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        new = "\n".join((begin, *lines(), end))
        page = re.sub(f"{begin}.*?{end}", lambda _, new=new: new, page, flags=re.DOTALL)
    return page


def _parameter(parameter: Any) -> str:
    """`DATA` for an argument, `--out` for an option."""
    name = " / ".join([parameter.opts[0], *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        name = name.upper() + ("…" if parameter.nargs == -1 else "")
    return f"`{name}`" + (" (required)" if parameter.required else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    REFERENCE.write_text(with_parts(REFERENCE.read_text("utf-8")), "utf-8")
