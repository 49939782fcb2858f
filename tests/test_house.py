"""Laws of the house itself: light and quiet at import, one public list, one idea per file, promises that exist."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import labeltune

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
HEAVY = {"torch", "transformers", "peft", "sklearn", "scipy", "pyarrow", "matplotlib", "numpy", "pydantic"}
LAZY = {
    "datasets",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "peft",
    "ray",
}  # docs/dependencies.md says where and why


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def distributions() -> set[str]:
    """All that pyproject.toml asks for, extras included, by name."""
    table = project()["project"]
    wanted = [*table["dependencies"], *(one for extra in table["optional-dependencies"].values() for one in extra)]
    return {re.match(r"[\w-]+", one).group().lower() for one in wanted}


def late_imports(tree: ast.Module) -> set[str]:
    """Top-level names of the packages that functions import."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    plain = {alias.name for node in inside if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module for node in inside if isinstance(node, ast.ImportFrom)}}


def test_import_costs_under_half_a_second() -> None:
    measured = "import time; start = time.perf_counter(); import labeltune; print(time.perf_counter() - start)"
    assert min(float(python(measured).stdout) for _ in range(5)) < 0.5


def test_import_brings_in_nothing_heavy() -> None:
    loaded = python("import sys, labeltune; print(*{name.split('.')[0] for name in sys.modules})").stdout.split()
    assert not HEAVY & set(loaded)


def test_import_is_quiet_and_changes_no_global_state() -> None:
    watched = "(logging.root.handlers, logging.root.level, list(warnings.filters), dict(os.environ), random.getstate())"
    said = python(
        "import copy, logging, os, random, warnings\n"
        f"before = copy.copy({watched})\nimport labeltune\nassert before == {watched}\n"
    )
    assert said.stdout + said.stderr == ""


@pytest.mark.slow
def test_every_room_is_quiet_at_import() -> None:
    dotted = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCES]
    every = "; ".join(f"import {name.removesuffix('.__init__')}" for name in dotted)
    said = subprocess.run([sys.executable, "-c", every], capture_output=True, text=True, check=True)
    assert said.stdout + said.stderr == ""


def test_every_public_name_resolves_and_explains_itself() -> None:
    assert len(set(labeltune.__all__)) == len(labeltune.__all__)
    assert set(labeltune.__all__) <= set(dir(labeltune))
    for name in labeltune.__all__:
        thing = getattr(labeltune, name)
        assert thing.__doc__, name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = labeltune.nonsense


def test_the_public_names_are_those_that_a_type_checker_sees() -> None:
    tree = ast.parse(Path(labeltune.__file__).read_text("utf-8"))
    typed = [node for top in tree.body if isinstance(top, ast.If) for node in top.body]
    assert sorted(alias.asname or alias.name for node in typed for alias in node.names) == labeltune.__all__


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_opens_with_its_one_idea(path: Path) -> None:
    idea = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert idea, "a file begins with a docstring"
    first = idea.split("\n\n")[0]
    assert re.search(r"[.?!:]$", first), f"the first paragraph is a sentence: {first}"


def test_no_two_files_have_one_idea() -> None:
    ideas = [(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0] for path in SOURCES]
    assert len(set(ideas)) == len(ideas)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_stand_at_the_top_but_for_the_listed_ones(path: Path) -> None:
    if path.name not in ("cli.py", "__init__.py"):
        assert late_imports(ast.parse(path.read_text("utf-8"))) <= LAZY


def test_every_late_import_is_listed_with_its_reason() -> None:
    listed = (ROOT / "docs" / "dependencies.md").read_text("utf-8").split("## Late imports")[1]
    assert set(re.findall(r"^\| `([\w-]+)` ", listed, re.MULTILINE)) == LAZY


def test_nothing_is_left_to_do_later() -> None:
    mark = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]))
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *PAGES]
    assert not [name_of(path) for path in files if mark.search(path.read_text("utf-8"))]


def test_every_make_target_that_the_pages_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for page in PAGES for target in re.findall(r"`?\bmake ([a-z]+)\b(?:`| +#)", page.read_text("utf-8"))
    }
    assert {"demo", "test"} <= named <= targets


def test_every_dependency_is_justified_and_pinned() -> None:
    table = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert distributions() <= pinned
    assert distributions() <= set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE))


@pytest.mark.slow
def test_the_wheel_carries_all_that_the_package_is_made_of(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    carried = set(ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    files = {path for path in (ROOT / "src" / "labeltune").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(ROOT / "src")) for path in files} <= carried
    assert "labeltune/py.typed" in carried
