"""The page in a real browser: type, switch runs, see bars and highlights, drop a file, copy code."""

import csv
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Running, sentences

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.slow
TEXT = "the thin hen 🐔 and Bob sang in Anna Inn"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(served: Running, downloads: Path) -> Iterator[Any]:
    """Chromium on the page of the server."""
    if not (BROWSER and DRIVER):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1000,1250",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.get(served.url + "/")
        yield driver
    finally:
        driver.quit()


def until(browser: Any, script: str) -> Any:
    """The first truth that a script in the page gives."""
    end = time.monotonic() + 60
    while not (found := browser.execute_script(f"return {script}")):
        assert time.monotonic() < end, (script, browser.get_log("browser"))
        time.sleep(0.05)
    return found


def choose(browser: Any, run: str) -> None:
    from selenium.webdriver.support.select import Select

    until(browser, "document.querySelectorAll('#run option').length")
    Select(browser.find_element("id", "run")).select_by_visible_text(run)


def write(browser: Any, text: str, place: int = 0) -> None:
    """As a keyboard or a paste would; the driver's keyboard knows no characters beyond the basic plane."""
    browser.find_element("id", f"field-{place}").clear()
    put = "const a = document.getElementById(arguments[0]); a.value = arguments[1]; a.dispatchEvent(new Event('input'))"
    browser.execute_script(put, f"field-{place}", text)


def test_bars_are_the_probabilities_as_one_types(browser: Any, served: Running) -> None:
    choose(browser, "moods")
    browser.find_element("id", "field-0").send_keys("the thin hen sang")
    asked = {"texts": "the thin hen sang", "scores": True}
    (said,) = served.client.post("/runs/moods/predict", json=asked).json()["predictions"]
    expected = [f"{100 * score:.1f} %" for score in sorted(said["scores"].values(), reverse=True)]
    numbers = "[...document.querySelectorAll('#answer .number')].map((one) => one.textContent)"
    until(browser, f"JSON.stringify({numbers}) === {json.dumps(json.dumps(expected, separators=(',', ':')))}")
    assert browser.find_element("css selector", ".row.chosen span").text == said["label"]


def test_switching_to_a_tagger_highlights_its_entities_in_the_same_text(browser: Any, served: Running) -> None:
    choose(browser, "moods")
    write(browser, TEXT)
    choose(browser, "names")
    (said,) = served.client.post("/runs/names/predict", json={"texts": TEXT}).json()["predictions"]
    assert said["spans"], "the tagger must find something, or nothing is seen"
    shown = "[...document.querySelectorAll('mark')].map((one) => one.firstChild.textContent).join('|')"
    until(browser, f"{shown} === {json.dumps('|'.join(span['text'] for span in said['spans']))}")
    parts = "[...document.getElementById('text-read').childNodes]"
    assert until(browser, parts + ".map((one) => (one.firstChild ?? one).textContent).join('')") == TEXT


def test_every_kind_of_run_is_shown(browser: Any) -> None:
    for run, seen in (("regression", "value"), ("multilabel", "%"), ("ordinal", "%")):
        choose(browser, run)
        write(browser, "the thin hen")
        until(browser, f"document.getElementById('answer').textContent.includes('{seen}')")
    choose(browser, "classification")
    write(browser, "one")
    write(browser, "two", 1)
    until(browser, "document.querySelectorAll('#answer .row').length === 2")


def test_a_file_comes_back_as_csv_with_the_answers(
    browser: Any, served: Running, downloads: Path, tmp_path: Path
) -> None:
    choose(browser, "moods")
    texts = [f'{text}, "quoted"\nand a line' for text in sentences(150)[:-1]]
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text", "label"], *([i, text, "gold"] for i, text in enumerate(texts))])
    browser.find_element("id", "file").send_keys(str(path))
    until(browser, "document.getElementById('file-said').textContent.includes('149 rows answered')")
    found = downloads / "texts.labels.csv"
    end = time.monotonic() + 10
    while not found.exists() and time.monotonic() < end:
        time.sleep(0.05)
    with found.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    said = served.client.post("/runs/moods/predict", json={"texts": texts}).json()["predictions"]
    assert [(row["id"], row["text"], row["label"]) for row in rows] == [
        (str(i), text, one["label"]) for i, (text, one) in enumerate(zip(texts, said, strict=True))
    ]
    assert {row["input_label"] for row in rows} == {"gold"}


def test_the_code_that_it_shows_runs(browser: Any) -> None:
    import subprocess

    choose(browser, "moods")
    write(browser, 'it\'s the "hen" 🐔')
    command = until(browser, "document.getElementById('curl').textContent")
    if shutil.which("curl"):
        said = subprocess.run(command + " --silent", shell=True, capture_output=True, text=True, check=True).stdout
        assert json.loads(said)["predictions"][0]["label"]
    python = browser.find_element("id", "python").text
    assert "import requests" in python
    compile(python, "shown", "exec")


def nameless(browser: Any) -> list[str]:
    """The controls that are seen and that no screen reader could call by a name; asked anew where an answer came in."""
    from selenium.common.exceptions import StaleElementReferenceException

    try:
        controls = browser.find_elements("css selector", "select, textarea, input, button, progress, [role=meter]")
        found = [one for one in controls if one.is_displayed() and not one.accessible_name]
        return [one.get_attribute("outerHTML") for one in found]
    except StaleElementReferenceException:
        return nameless(browser)


def test_it_asks_nobody_else_and_says_what_its_parts_are(browser: Any, served: Running) -> None:
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked
    assert all(one.startswith((served.url, "data:")) for one in asked)
    assert nameless(browser) == []
    assert browser.find_element("tag name", "html").get_attribute("lang") == "en"
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "422" not in line["message"]]
    assert not errors
