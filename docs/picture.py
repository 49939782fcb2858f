"""Run the demo and draw what it prints as docs/demo.svg.

    python docs/picture.py

The picture holds its text as text and asks no server for fonts.
"""

import io
import re
from pathlib import Path

from rich.console import Console

from labeltune.demo import run_demo
from labeltune.demo_screen import show_demo

PICTURE = Path(__file__).parent / "demo.svg"
WIDTH = 110


def main() -> None:
    """Train, show, draw."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True)
    show_demo(run_demo(), console)
    svg = console.export_svg(title="labeltune demo", unique_id="demo")
    svg = svg.replace(f"{PICTURE.parents[1]}/", "")  # where this checkout lies is nobody's business
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":  # the demo's processes import this file
    main()
