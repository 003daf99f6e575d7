"""Headless Chromium for the tests of the pages, and a small run for it to show.

Needs `chromium` and `chromedriver` (Debian: chromium, chromium-driver). Without them, tests with `needs_browser` are
skipped.
"""

import csv
import itertools
import json
import shutil
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from lstsd_hf import LogitsStore

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        None in (CHROMIUM, DRIVER), reason="no chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SAMPLES, EPOCHS = 120, 3
WRONG = 17  # the sample that looks most wrong, and whose text is hostile
FLIPPED = (WRONG, 2, 9, 40, 41, 55, 60, 75, 88, 101, 119)  # the given label is not the predicted class
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><b>bold</b> &lt;i&gt;'
CLASSES = ["bad", "<img src=x onerror='window.hacked = 3'>", "good"]


def write_run(folder: Path, classes: list[str] = CLASSES, log: list[dict[str, Any]] | None = None) -> datasets.Dataset:
    """Writes a run on texts of three classes, with a few labels that look wrong; returns the texts."""
    rng = np.random.default_rng(0)
    true = np.arange(SAMPLES) % 3
    logits = rng.normal(0, 0.3, (EPOCHS, SAMPLES, 3)) + np.array([1, 2, 3])[:, None, None] * np.eye(3)[true]
    logits[:, WRONG] = [0, 0, 9]
    labels = true.copy()
    labels[list(FLIPPED)] = (true[list(FLIPPED)] + 1) % 3
    write_store(folder, logits, labels)
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(classes))}))
    log = log or [{"epoch": k / 4, "loss": 1 / k, "base_loss": 1 / k} for k in range(1, 4 * EPOCHS + 1)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    texts = [f"the film number {i} was long" for i in range(SAMPLES)]
    texts[WRONG] = HOSTILE
    texts[3] = "=1+1"
    return datasets.Dataset.from_dict({"sample_id": range(SAMPLES), "text": texts})


def write_store(folder: Path, logits: Any, labels: Any, dtype: str = "float32") -> Path:
    """Writes a run folder with a store of (E, N, C) logits; returns the folder."""
    store = LogitsStore.create(folder / "_logits", logits.shape[1], logits.shape[2:], dtype, "test")
    store.write_labels(np.asarray(labels))
    for epoch, predicted in enumerate(logits):
        store.record(epoch, np.arange(len(predicted)), predicted)
        store.seal(epoch)
    return folder


class Browser:
    """A headless Chromium window that shows a page. At the end of a `with` block it checks for errors, then closes."""

    def __init__(
        self, page: Path, downloads: Path, size: str = "desktop", scheme: str = "light", script: str | None = None
    ) -> None:
        """Opens the page. `script` is JavaScript that runs before the page's own."""
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.page, self.downloads = page, downloads
        self.width, height = SIZES[size]
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.tell("Emulation.setDeviceMetricsOverride", **metrics)
        self.tell("Emulation.setTouchEmulationEnabled", enabled=size == "phone")
        self.tell("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.prefer(scheme)
        if script is not None:
            self.tell("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.open()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                assert self.run("return window.hacked") is None
                assert [entry["message"] for entry in self.driver.get_log("browser")] == []
                asked = {url for url in self.requests() if not url.startswith(("data:", "blob:"))}
                assert asked == {self.page.as_uri()}
        finally:
            self.driver.quit()

    def open(self) -> None:
        """Loads the page, or reloads it."""
        self.driver.get(self.page.as_uri())
        self.wait(lambda: self.run("return document.documentElement.dataset.ready"))

    def tell(self, command: str, **arguments: Any) -> None:
        self.driver.execute_cdp_cmd(command, arguments)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 60).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()

    def choose(self, selector: str, value: str) -> None:
        Select(self.find(selector)).select_by_value(value)

    def press(self, keys: str) -> None:
        """Sends keys one by one to the element that has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def tap(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def point(self, number: int) -> tuple[float, float]:
        """Returns where a point of the map is in the window. Points are numbered in the table's order."""
        script = """
            const point = document.querySelectorAll('#plot-map .trace .point')[arguments[0]];
            point.scrollIntoView({block: 'center'});
            const {x, y, width, height} = point.getBoundingClientRect();
            return [x + width / 2, y + height / 2];"""
        x, y = self.run(script, number)
        return x, y

    def hover(self, number: int, start: str) -> str:
        """Hovers over a point of the map, and returns its label as soon as that begins with `start`."""
        attempts = itertools.count()

        def label() -> str | None:
            x, y = self.point(number)
            self.mouse("mouseMoved", x + next(attempts) % 2, y)  # a busy machine may lose a move
            found = self.run("return document.querySelector('#plot-map .hovertext')?.textContent")
            return found if found and found.startswith(start) else None

        return str(self.wait(label))

    def column(self, title: str) -> list[str]:
        """Returns the cells of a column on the table's current page."""
        titles = [cell.get_attribute("textContent").strip() for cell in self.all("#samples thead .dt-column-title")]
        at = titles.index(title) + 1
        cells = self.all(f"#samples tbody td:nth-child({at})")
        return [cell.get_attribute("textContent") for cell in cells]

    def downloaded(self, name: str) -> list[dict[str, str]]:
        """Returns the rows of a CSV file that the page has just downloaded, and deletes the file."""
        file = self.downloads / name
        self.wait(lambda: file.is_file() and file.stat().st_size)
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        file.unlink()
        return rows

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def brightness(self, selector: str, attribute: str) -> float:
        """Returns the brightness of one of an element's colours, from 0 (black) to 255."""
        script = (
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/\\d+/g).slice(0, 3)"
        )
        return float(np.mean([int(value) for value in self.run(script, selector, attribute)]))

    def barriers(self) -> list[str]:
        """Returns the accessibility violations that axe-core finds on the page."""
        self.run((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
        self.driver.set_script_timeout(120)
        found = self.driver.execute_async_script("axe.run().then(({violations}) => arguments[0](violations))")
        return [f"{one['impact']}: {one['id']}: {node['html']}" for one in found for node in one["nodes"]]

    def seconds(self, act: Callable[[], Any]) -> float:
        start = time.monotonic()
        act()
        return time.monotonic() - start
