"""Beside transformers' Trainer with PEFT and padding: the same rows from the same weights lead to the same weights."""

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's call
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import equal_weights

    return equal_weights


def texts(rows: int) -> list[list[str]]:
    """Texts of 1 to 18 words."""
    return [[WORDS[(i * 5 + j) % len(WORDS)] for j in range(1 + (7 * i) % 18)] for i in range(rows)]


def write_labelled(path: Path, rows: int) -> str:
    path.write_text("".join(f"{len(words) % 3} {' '.join(words)}\n" for words in texts(rows)))
    return str(path)


def write_tagged(path: Path, rows: int) -> str:
    tags = {"ring": "B-ring", "tin": "B-ring", "inn": "B-place", "thing": "I-place"}
    sentences = [[word if word != "thing" else "inn thing" for word in words] for words in texts(rows)]
    path.write_text(
        "\n".join("".join(f"{w}\t{tags.get(w, 'O')}\n" for w in " ".join(words).split()) for words in sentences)
    )
    return str(path)


def worst(differences: dict[str, dict[str, float]]) -> float:
    return max(each["of_weight"] for each in differences.values())


@pytest.mark.parametrize(
    ("task", "write", "name"),
    [("classification", write_labelled, "stsa.rows"), ("tagging", write_tagged, "rows.conll")],
    ids=["classification", "tagging"],
)
def test_twenty_steps_end_with_the_weights_of_the_trainer(benchmark, tiny_folder, tmp_path, task, write, name) -> None:
    rows, dev = write(tmp_path / name, 320), write(tmp_path / f"{Path(name).stem}-dev{Path(name).suffix}", 21)
    found = benchmark.differences(task=task, model=str(tiny_folder), rows=rows, dev=dev, folder=tmp_path, lr=3e-3)
    assert worst(found) <= 1e-4


def test_so_they_do_on_real_sentiment(benchmark, shared, tmp_path) -> None:
    model, source = str(shared / "models" / "tinystories-656k"), shared / "data" / "sst" / "stsa.binary.train"
    rows = tmp_path / "stsa.rows"
    rows.write_text("".join(source.read_text("utf-8").splitlines(True)[:320]), "utf-8")
    dev = str(shared / "data" / "sst" / "stsa.binary.dev")
    found = benchmark.differences(task="classification", model=model, rows=str(rows), dev=dev, folder=tmp_path)
    assert worst(found) <= 1e-4


def test_so_they_do_on_real_entities(benchmark, shared, tmp_path) -> None:
    model, folder = str(shared / "models" / "tinystories-656k"), shared / "data" / "wnut17"
    rows, dev = tmp_path / "rows.conll", tmp_path / "dev.conll"
    benchmark.whole_words_only(folder / "wnut17train.conll", model, 320, rows)
    benchmark.whole_words_only(folder / "emerging.dev.conll", model, 64, dev)
    found = benchmark.differences(task="tagging", model=model, rows=str(rows), dev=str(dev), folder=tmp_path)
    assert worst(found) <= 1e-4


def test_the_comparison_sees_a_learning_rate_that_differs(benchmark, tiny_folder, tmp_path, monkeypatch) -> None:
    build = benchmark.stock.Job
    monkeypatch.setattr(benchmark.stock, "Job", lambda **job: build(**job | {"lr": job["lr"] * 1.01}))
    rows, dev = write_labelled(tmp_path / "stsa.rows", 320), write_labelled(tmp_path / "stsa.dev", 21)
    found = benchmark.differences(
        task="classification", model=str(tiny_folder), rows=rows, dev=dev, folder=tmp_path, lr=3e-3
    )
    assert worst(found) > 1e-4
