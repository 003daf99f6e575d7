"""The report's page in headless Chromium, on a desktop and a phone, in light and in dark.

Needs `chromium` and `chromedriver` (Debian: chromium, chromium-driver): `pytest -m browser`.
"""

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from lstsd_hf import LogitsStore, write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        None in (CHROMIUM, DRIVER), reason="no chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]

SAMPLES, EPOCHS = 120, 3
WRONG = 17  # the sample whose label is wrong, and whose text is hostile
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><b>bold</b> &lt;i&gt;'
CLASSES = ["bad", "<img src=x onerror='window.hacked = 3'>", "good"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % 3
    logits = rng.normal(0, 1, (EPOCHS, SAMPLES, 3)) + np.array([0.5, 2, 3])[:, None, None] * np.eye(3)[labels]
    logits[:, WRONG] = [0, 0, 9]
    labels[WRONG] = 0
    store = LogitsStore.create(folder / "_logits", SAMPLES, (3,), "float32", "test")
    store.write_labels(labels)
    for epoch, predicted in enumerate(logits):
        store.record(epoch, np.arange(SAMPLES), predicted)
        store.seal(epoch)
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(CLASSES))}))
    log = [{"epoch": k / 4, "loss": 1 / k, "base_loss": 1 / k} for k in range(1, 4 * EPOCHS + 1)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    texts = [f"the film number {i} was long" for i in range(SAMPLES)]
    texts[WRONG] = HOSTILE
    texts[3] = "=1+1"
    return write_report(folder, datasets.Dataset.from_dict({"sample_id": range(SAMPLES), "text": texts}))


class Browser:
    """A window of headless Chromium that shows the page."""

    def __init__(self, page: Path, downloads: Path, size: str, scheme: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.downloads = downloads
        self.width, height = SIZES[size]
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.tell("Emulation.setDeviceMetricsOverride", **metrics)
        self.tell("Emulation.setTouchEmulationEnabled", enabled=size == "phone")
        self.tell("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.prefer(scheme)
        self.driver.get(page.as_uri())
        self.wait(lambda: self.run("return document.documentElement.dataset.ready"))

    def tell(self, command: str, **arguments: Any) -> None:
        self.driver.execute_cdp_cmd(command, arguments)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 30).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()

    def point(self, number: int) -> tuple[float, float]:
        """Where a point of the map is in the window; they are in the table's order."""
        script = """
            const point = document.querySelectorAll('#plot-map .trace .point')[arguments[0]];
            point.scrollIntoView({block: 'center'});
            const {x, y, width, height} = point.getBoundingClientRect();
            return [x + width / 2, y + height / 2];"""
        x, y = self.run(script, number)
        return x, y

    def column(self, title: str) -> list[str]:
        """What stands in a column of the table's present page."""
        titles = [cell.get_attribute("textContent").strip() for cell in self.all("#samples thead .dt-column-title")]
        at = titles.index(title) + 1
        cells = self.all(f"#samples tbody td:nth-child({at})")
        return [cell.get_attribute("textContent") for cell in cells]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def brightness(self, selector: str, attribute: str) -> float:
        """Of a colour of an element, from 0 (black) to 255."""
        script = (
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/\\d+/g).slice(0, 3)"
        )
        return float(np.mean([int(value) for value in self.run(script, selector, attribute)]))


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def window(request: pytest.FixtureRequest, page: Path, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(page, tmp_path, *request.param)
    try:
        yield browser
        assert browser.run("return window.hacked") is None
        assert [entry["message"] for entry in browser.driver.get_log("browser")] == []
        asked = [url for url in browser.requests() if not url.startswith(("data:", "blob:"))]
        assert asked == [page.as_uri()]
    finally:
        browser.driver.quit()


@pytest.fixture
def desktop(page: Path, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(page, tmp_path, "desktop", "light")
    try:
        yield browser
        assert browser.run("return window.hacked") is None
        assert browser.driver.get_log("browser") == []
    finally:
        browser.driver.quit()


def test_reading_sorting_filtering_ticking_downloading(window: Browser) -> None:
    # It fits the window, and has its colours.
    assert window.run("return document.documentElement.scrollWidth") <= window.width
    is_dark = window.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    for selector, attribute, is_ink in (
        ("body", "backgroundColor", False),
        ("body", "color", True),
        ("#samples tbody td", "color", True),
        (".dt-search input", "backgroundColor", False),
        ("#plot-map .xtick text", "fill", True),
        ("#plot-losses .legendtext", "fill", True),
    ):
        assert (window.brightness(selector, attribute) > 127) == (is_dark == is_ink), (selector, attribute)
    assert window.find("#failure").is_displayed() is False

    # Hovering, and picking a point: by a tap on a phone.
    x, y = window.point(0)
    window.tell("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    label = window.wait(lambda: window.run("return document.querySelector('#plot-map .hovertext')?.textContent"))
    assert f"id {WRONG}, given: bad" in label
    assert "<b>bold</b>" in label
    assert f"epoch {EPOCHS - 1}: good (0% given label)" in label
    x, y = window.point(0)
    for kind in ("mousePressed", "mouseReleased"):
        window.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    window.wait(lambda: f"Sample {WRONG}" in window.find("#details").text)
    assert HOSTILE in window.find("#details .text").text
    assert len(window.all("#details .epochs tbody tr")) == EPOCHS

    # The table: the most suspicious first; by a click on a title in another order.
    assert window.column("id")[0] == str(WRONG)
    assert window.column("text")[0] == HOSTILE
    noise = [float(value) for value in window.column("noise")]
    assert noise == sorted(noise, reverse=True)
    title = "#samples thead th:nth-child(7) .dt-column-title"
    assert window.find(title).get_attribute("textContent") == "confidence"
    for descending in (False, True):
        window.click(title)
        values = [float(value) for value in window.column("confidence")]
        assert values == sorted(values, reverse=descending)

    # Only one class: the choices are under the button in the column's title.
    window.click("#samples thead th:nth-child(4) .dtcc-button_dropdown")
    choices = window.wait(lambda: window.all(".dtcc-list-buttons button"))
    assert sorted(choice.get_attribute("textContent") for choice in choices) == sorted(CLASSES)
    next(choice for choice in choices if choice.text == "good").click()
    window.wait(lambda: set(window.column("given")) == {"good"})
    assert "of 39 entries" in window.find(".dt-info").text

    # Ticks stay when the page of the table, or the filter, changes; the file has what is ticked, and nothing else.
    button = ".dt-buttons button"
    assert "disabled" in window.find(button).get_attribute("class")
    window.click("#samples tbody tr:nth-child(2) td.tick")
    ticked = [window.column("id")[1]]
    window.click(".dt-paging-button.next")
    window.click("#samples tbody tr:nth-child(1) td.tick")
    ticked.append(window.column("id")[0])
    search = window.find(".dt-search input")
    search.send_keys("1+1")
    window.wait(lambda: window.column("id") == [])
    assert window.find(button).text == "Download 2 ticked as CSV"
    window.click(button)
    file = window.downloads / "ticked-samples.csv"
    window.wait(file.is_file)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert sorted(row["id"] for row in rows) == sorted(ticked)
    assert {row["given"] for row in rows} == {"good"}
    assert list(rows[0])[:5] == ["id", "text", "given", "predicted", "noise"]
    assert float(rows[0]["noise"]) <= 1


def test_the_file_holds_a_hostile_text_as_it_is_and_no_formula(desktop: Browser) -> None:
    search = desktop.find(".dt-search input")
    for query, found in (("bold", WRONG), ("=1+1", 3)):
        search.clear()
        search.send_keys(query)
        desktop.wait(lambda found=found: desktop.column("id") == [str(found)])
        desktop.click("#samples tbody tr:nth-child(1) td.tick")
    desktop.click(".dt-buttons button")
    file = desktop.downloads / "ticked-samples.csv"
    desktop.wait(file.is_file)
    with file.open(encoding="utf-8", newline="") as lines:
        texts = {row["id"]: row["text"] for row in csv.DictReader(lines)}
    assert texts == {str(WRONG): HOSTILE, "3": "'=1+1"}


def test_finding_a_sample(desktop: Browser) -> None:
    def find(query: str) -> str:
        field = desktop.find("#query")
        field.clear()
        field.send_keys(query + "\n")
        return desktop.find("#found").text

    assert find("42") == ""
    assert "Sample 42" in desktop.find("#details").text
    assert "the film number 42 was long" in desktop.find("#details").text
    marked = desktop.run("return document.getElementById('plot-map').data[1].x.length")
    assert marked == 1
    assert find("NUMBER 7 was") == ""
    assert "Sample 7" in desktop.find("#details").text
    assert find("film number") == f"{SAMPLES - 2} samples: the most suspicious is shown"
    assert find("no such words") == "no id or text on this page matches"
    assert find(str(SAMPLES)) == "no id or text on this page matches"
    desktop.click("#samples tbody button.id")
    assert f"Sample {WRONG}" in desktop.find("#details").text


@pytest.mark.parametrize("size", SIZES)
def test_labels_of_texts_without_spaces_fit_the_window(tmp_path: Path, size: str) -> None:
    store = LogitsStore.create(tmp_path / "_logits", 3, (2,), "float32", "test")
    store.write_labels([0, 0, 0])
    store.record(0, np.arange(3), [[0, 9], [0, 5], [0, 1]])
    store.seal(0)
    words = "An introduction of some ten words, which is followed by"
    texts = ["这部电影非常糟糕、演员的表演令人失望。" * 9, f"https://example.org/{'a' * 260}", f"{words} {'🙂' * 200}"]
    data = datasets.Dataset.from_dict({"sample_id": range(3), "text": texts})
    browser = Browser(write_report(tmp_path, data), tmp_path, size, "light")
    try:
        hover = browser.run("return document.getElementById('plot-map').data[0].hovertext")
        for label, text in zip(hover, texts, strict=True):
            lines = label.split("<br>")[1:-1]  # between the id and the prediction
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        for number in range(3):
            x, y = browser.point(number)
            browser.tell("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
            shown = f"id {number}, given"
            script = "return document.querySelector('#plot-map .hovertext')?.textContent ?? ''"
            browser.wait(lambda shown=shown, script=script: shown in browser.run(script))
            script = "return document.querySelector('#plot-map .hovertext').getBoundingClientRect().width"
            assert browser.run(script) < browser.width
    finally:
        browser.driver.quit()


def test_the_scheme_changes_while_the_page_is_open(desktop: Browser) -> None:
    assert desktop.brightness("#plot-map .xtick text", "fill") < 127
    desktop.prefer("dark")
    desktop.wait(lambda: desktop.brightness("#plot-map .xtick text", "fill") > 127)
    assert desktop.brightness("#samples tbody td", "color") > 127


def test_a_hundred_thousand_samples(tmp_path: Path) -> None:
    count = 100_000
    rng = np.random.default_rng(0)
    store = LogitsStore.create(tmp_path / "_logits", count, (2,), "float16", "test")
    store.write_labels(rng.integers(0, 2, count))
    for epoch in range(3):
        store.record(epoch, np.arange(count), rng.normal(size=(count, 2)))
        store.seal(epoch)
    words = np.array(["film", "story", "actor", "music", "scene", "boring", "lovely", "far", "too", "long"])
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (count, 25))]]
    page = write_report(tmp_path, datasets.Dataset.from_dict({"sample_id": range(count), "text": texts}))
    assert page.stat().st_size < 20e6
    browser = Browser(page, tmp_path, "desktop", "light")
    try:
        start = time.monotonic()
        browser.click(".dt-paging-button.last")
        assert browser.find(".dt-info").text.startswith("Showing 99,976 to 100,000 of 100,000")
        browser.click("#samples thead th:nth-child(7) .dt-column-title")
        assert browser.column("confidence")[0] < browser.column("confidence")[-1]
        assert time.monotonic() - start < 30  # a fraction of a second on an idle machine
        assert browser.driver.get_log("browser") == []
    finally:
        browser.driver.quit()


def test_a_regression_with_gaps_and_without_texts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=30).astype(np.float32)
    labels[4] = -1
    predictions = labels + rng.normal(0, 0.1, (2, 30)).astype(np.float32)
    predictions[:, 4] = labels[4] + 3
    predictions[0, 4] = np.nan
    predictions[:, 9] = np.nan
    labels[5], predictions[:, 5] = 0, 1.25e-4
    store = LogitsStore.create(tmp_path / "_logits", 30, (1,), "float32", "test")
    store.write_labels(labels)
    for epoch, predicted in enumerate(predictions):
        store.record(epoch, np.arange(30), predicted[:, None])
        store.seal(epoch)
    browser = Browser(write_report(tmp_path), tmp_path, "desktop", "light")
    try:
        assert "no prediction in any epoch: 1. They are not" in browser.find("main").text
        assert "Showing 1 to 25 of 29 entries" in browser.find(".dt-info").text
        assert browser.column("id")[0] == "4"
        browser.click("#samples tbody button.id")
        cells = [cell.text for cell in browser.all("#details .epochs tbody td")]
        assert cells == ["0", "no prediction", "1", "2"]
        browser.click("#samples tbody tr:nth-child(1) td.tick")
        browser.click("#samples thead th:nth-child(3) .dt-column-title")
        given = [float(value) for value in browser.column("given")]
        assert given == sorted(given)
        browser.click(".dt-buttons button")
        file = browser.downloads / "ticked-samples.csv"
        browser.wait(file.is_file)
        with file.open(encoding="utf-8", newline="") as lines:
            row = next(csv.DictReader(lines))
        assert (row["id"], row["given"], row["predicted"]) == ("4", "-1", "2")
        browser.find("#query").send_keys("5\n")
        measures = browser.find("#details .measures").text.split()
        assert measures[measures.index("error") + 1] == "0.000125"
        browser.find("#query").send_keys("00\n")
        assert browser.find("#found").text == "no id on this page matches"
        assert browser.driver.get_log("browser") == []
    finally:
        browser.driver.quit()
