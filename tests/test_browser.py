"""The pages in headless Chromium, on a desktop and a phone, in light and dark: reading and exploring them."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest

from browser import (
    CLASSES,
    EPOCHS,
    FLIPPED,
    HOSTILE,
    SAMPLES,
    SIZES,
    WRONG,
    Browser,
    needs_browser,
    write_run,
    write_store,
)
from lstsd_hf import write_report
from lstsd_hf.report.compare import write_comparison

pytestmark = needs_browser

MEMORY = [
    {"epoch": k, "honest_accuracy": h, "memorised": m, "honest_accuracy_error": 0.015, "memorised_error": 0.01}
    for k, h, m in ((1.0, 0.6, 0.0), (2.0, 0.7, 0.1), (3.0, 0.72, 0.19))
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_report(folder, write_run(folder))


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def window(request: pytest.FixtureRequest, page: Path, tmp_path: Path) -> Iterator[Browser]:
    with Browser(page, tmp_path, *request.param) as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(page, tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture
def desktop(opened: Browser) -> Browser:
    """The page in its initial state."""
    opened.prefer("light")
    opened.open()
    return opened


def test_reading_sorting_filtering_downloading(window: Browser) -> None:
    # The page fits the window, and has the colours of the scheme.
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

    # The page begins with the number of labels that look wrong, and the first of them. Nothing is blank.
    assert window.text("h1") == f"{len(FLIPPED)} of {SAMPLES} labels look wrong"
    assert window.text("#start") == "Review them"
    assert window.text("#text") == HOSTILE
    assert (window.text("#given"), window.text("#suggested")) == ("bad", "good")
    assert all(plot.size["height"] > 100 and plot.text for plot in window.all(".plot"))

    # A point of the map has a label on hover, and a tap picks it.
    label = window.hover(0, f"id {WRONG}, given: bad")
    assert "<b>bold</b>" in label
    assert f"epoch {EPOCHS - 1}: good (0% given label)" in label
    window.hover(1, f"id {window.column('id')[1]}, ")
    window.tap(*window.point(1))
    second = window.wait(lambda: window.text("#text").startswith("the film") and window.text("#text"))
    window.click("summary")
    assert len(window.all("#epochs tr")) == EPOCHS
    assert "How often a right prediction was followed by a wrong one" in window.text("details")

    # The table begins with the most suspicious. The suggested label is on the screen, on a phone too.
    assert window.column("text")[:2] == [HOSTILE, second]
    assert window.column("id")[0] == str(WRONG)
    scores = [float(value) for value in window.column("score")]
    assert scores == sorted(scores, reverse=True)
    titles = [cell.text for cell in window.all("#samples thead .dt-column-title")]
    assert titles == ["text", "given", "suggested", "score", "decision", "id"]
    suggested = window.find("#samples tbody td:nth-child(3)")
    assert suggested.rect["x"] + suggested.rect["width"] <= window.width

    # "More measures" shows the other measures, and what each means. A click on a title sorts by it.
    assert window.find("#more").is_displayed() is False
    window.click(".dt-buttons button")
    assert "High: the model changed its mind." in window.text("#more")
    title = "#samples thead th:nth-child(8) .dt-column-title"
    assert window.find(title).get_attribute("textContent") == "confidence"
    for descending in (False, True):
        window.click(title)
        values = [float(value) for value in window.column("confidence")]
        assert values == sorted(values, reverse=descending)

    # The button in a column's title filters by class.
    window.click("#samples thead th:nth-child(2) .dtcc-button_dropdown")
    choices = window.wait(lambda: window.all(".dtcc-list-buttons button"))
    assert sorted(choice.get_attribute("textContent") for choice in choices) == sorted(CLASSES)
    next(choice for choice in choices if choice.text == "good").click()
    window.wait(lambda: set(window.column("given")) == {"good"})
    listed = int(window.text("#listed").split()[0])
    assert f"of {listed} entries" in window.text(".dt-info")
    assert 0 < listed < SAMPLES

    # The file has the listed rows, and all measures.
    window.click(".dt-buttons button:nth-child(2)")
    rows = window.downloaded("samples.csv")
    assert len(rows) == listed
    assert {row["given"] for row in rows} == {"good"}
    assert list(rows[0])[:6] == titles
    assert 0 <= float(rows[0]["confidence"]) <= 1

    assert [one for one in window.barriers() if one.startswith(("critical", "serious"))] == []


def test_the_file_holds_a_hostile_text_as_it_is_and_no_formula(desktop: Browser) -> None:
    desktop.click(".dt-buttons button:nth-child(2)")
    texts = {row["id"]: row["text"] for row in desktop.downloaded("samples.csv")}
    assert (texts[str(WRONG)], texts["3"]) == (HOSTILE, "'=1+1")


def test_finding_a_sample(desktop: Browser) -> None:
    def find(query: str) -> str:
        field = desktop.find("#query")
        field.clear()
        field.send_keys(query + "\n")
        return desktop.text("#found")

    assert find("42") == ""
    assert desktop.text("#place").startswith("Sample 42")
    assert desktop.text("#text") == "the film number 42 was long"
    assert desktop.run("return document.getElementById('plot-map').layout.shapes.length") == 1
    assert find("NUMBER 7 was") == ""
    assert desktop.text("#place") == "Sample 7"
    assert find("film number") == f"{SAMPLES - 2} samples: the most suspicious is shown"
    assert find("no such words") == "no id or text on this page matches"
    assert find(str(SAMPLES)) == "no id or text on this page matches"
    desktop.click("#samples tbody button.open")
    assert desktop.text("#place") == f"Sample {WRONG}, 1 of {len(FLIPPED)}"
    assert desktop.driver.switch_to.active_element.get_attribute("id") == "review"


def test_a_lasso_on_the_map_filters_the_table(desktop: Browser) -> None:
    script = "return [...document.querySelectorAll('#plot-map .annotation-text')].map((one) => one.textContent)"
    assert desktop.run(script) == ["easy to learn", "ambiguous", "hard to learn"]
    desktop.click("#lasso")
    x, y = desktop.point(1)
    corners = [(x - 12, y - 12), (x + 12, y - 12), (x + 12, y + 12), (x - 12, y + 12), (x - 12, y - 12)]
    desktop.mouse("mousePressed", *corners[0], button="left", clickCount=1)
    for corner in corners[1:]:
        desktop.mouse("mouseMoved", *corner, button="left", buttons=1)
    desktop.mouse("mouseReleased", *corners[-1], button="left", clickCount=1)
    desktop.wait(lambda: "chosen on the map" in desktop.text("#listed"))
    inside = []
    for number in range(SAMPLES):
        px, py = desktop.run(
            """const box = document.querySelectorAll('#plot-map .trace .point')[arguments[0]].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];""",
            number,
        )
        if abs(px - x) < 12 and abs(py - y) < 12:
            inside.append(number)
    ids = desktop.run(
        "return [...document.querySelectorAll('#samples tbody td:nth-child(6)')].map((c) => c.textContent)"
    )
    assert len(ids) == len(inside) < SAMPLES
    desktop.click("#everything")
    assert desktop.text("#listed") == f"{SAMPLES} listed"
    assert desktop.run("return document.getElementById('plot-map').layout.selections.length") == 0


def test_the_map_is_coloured_by_class_or_by_correctness(desktop: Browser) -> None:
    def shown() -> tuple[str, int]:
        (legend,) = [one for one in desktop.all("ul.legend") if one.is_displayed()]
        fills = desktop.run(
            "return new Set([...document.querySelectorAll('#plot-map .point')].map((p) => p.style.fill)).size"
        )
        return legend.text.replace("\n", " "), fills

    assert shown()[0] == "correctness 0% 100%"
    desktop.choose("#colouring", "1")
    assert shown() == (f"given label {' '.join(CLASSES)}", 3)
    desktop.choose("#colouring", "0")
    assert shown()[0] == "correctness 0% 100%"


def test_the_matrix_filters_by_a_click(desktop: Browser) -> None:
    cells = {button.get_attribute("title"): button for button in desktop.all("#matrix button")}
    counts = {title: int(button.text) for title, button in cells.items()}
    assert sum(counts.values()) == SAMPLES
    desktop.choose("#show", "all")
    for title in cells.keys() - {"given bad, suggested good"}:
        cells[title].click()
        assert desktop.text("#listed") == f"{counts[title]} listed, {title}"
        cells[title].click()
    desktop.choose("#show", "flagged")
    title = "given bad, suggested good"
    cells[title].click()
    assert desktop.text("#listed") == f"{counts[title]} listed, {title}"
    assert set(zip(desktop.column("given"), desktop.column("suggested"), strict=True)) == {("bad", "good")}
    assert cells[title].get_attribute("aria-pressed") == "true"
    desktop.choose("#show", "decided")
    assert desktop.text("#listed") == f"0 listed, {title}"
    desktop.choose("#show", "flagged")
    cells[title].click()
    assert desktop.text("#listed") == f"{len(FLIPPED)} listed"
    assert sorted(map(int, desktop.column("id"))) == sorted(FLIPPED)


@pytest.mark.parametrize("size", SIZES)
def test_labels_of_texts_without_spaces_fit_the_window(tmp_path: Path, size: str) -> None:
    write_store(tmp_path, np.array([[[0, 9], [0, 1], [0, -1]]]), [0, 0, 0])
    words = "An introduction of some ten words, which is followed by"
    texts = ["这部电影非常糟糕、演员的表演令人失望。" * 9, f"https://example.org/{'a' * 260}", f"{words} {'🙂' * 200}"]
    data = datasets.Dataset.from_dict({"sample_id": range(3), "text": texts})
    with Browser(write_report(tmp_path, data), tmp_path, size) as browser:
        hover = browser.run("return document.getElementById('plot-map').data[0].hovertext")
        for label, text in zip(hover, texts, strict=True):
            lines = label.split("<br>")[1:-1]  # between the id and the prediction
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        for number in range(3):
            browser.hover(number, f"id {number}, given")
            script = "return document.querySelector('#plot-map .hovertext').getBoundingClientRect().width"
            assert browser.run(script) < browser.width


def test_many_classes_with_long_names_fit_a_phone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 50, 300)
    write_store(tmp_path, rng.normal(size=(2, 300, 50)) + 2 * np.eye(50)[labels], labels)
    names = {label: f"TOPLEVEL:a_category_with_a_rather_long_name_{label}" for label in range(50)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    with Browser(write_report(tmp_path), tmp_path, "phone") as browser:
        assert "It shows the 12 of 50 labels that are mistaken most often." in browser.text("main")
        browser.click("#matrix button")
        browser.choose("#colouring", "1")
        assert len(browser.find("ul.legend:not([hidden])").find_elements("css selector", "li")) == 11  # "others" too
        browser.click("#start")
        assert browser.run("return document.documentElement.scrollWidth") <= browser.width


def test_the_scheme_changes_while_the_page_is_open(desktop: Browser) -> None:
    assert desktop.brightness("#plot-map .xtick text", "fill") < 127
    desktop.prefer("dark")
    desktop.wait(lambda: desktop.brightness("#plot-map .xtick text", "fill") > 127)
    assert desktop.brightness("#samples tbody td", "color") > 127


def test_what_is_memory_is_shown_where_the_log_tells(tmp_path: Path, desktop: Browser) -> None:
    assert desktop.all("#plot-memory") == []
    page = write_report(tmp_path, write_run(tmp_path, log=MEMORY))
    with Browser(page, tmp_path, "phone", "dark") as browser:
        assert browser.text(".sentence").startswith("Of the 91 % that it gets right, 72 % it can do and 19 % it has")
        lines = browser.all("#plot-memory .scatterlayer .trace")
        assert len(lines) == 4  # both lines, and the two edges of the band
        assert browser.run("return document.documentElement.scrollWidth") <= browser.width


def test_a_hundred_thousand_samples(tmp_path: Path) -> None:
    count = 100_000
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    write_store(tmp_path, rng.normal(size=(3, count, 2)) + np.eye(2)[labels], labels, "float16")
    words = np.array(["film", "story", "actor", "music", "scene", "boring", "lovely", "far", "too", "long"])
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (count, 25))]]
    page = write_report(tmp_path, datasets.Dataset.from_dict({"sample_id": range(count), "text": texts}))
    assert page.stat().st_size < 20e6
    with Browser(page, tmp_path) as browser:

        def use() -> None:
            browser.click(".dt-paging-button.last")
            assert browser.text(".dt-info").startswith("Showing 99,976 to 100,000 of 100,000")
            browser.click("#samples thead th:nth-child(4) .dt-column-title")
            assert browser.column("score")[0] < browser.column("score")[-1]
            browser.click("#start")
            browser.press("krd")
            assert browser.text("#progress").startswith("3 of ")

        assert browser.seconds(use) < 30  # two seconds on an idle machine


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    labels = np.array([0, 1, 0, 1, 0, 1])
    margins = np.array(
        [[[1, 1, 1, -1, -1, 1]], [[2, 3, -1, 2, 1, 1]]]
    )  # of the label's logit: samples 3 and 4 get better, 2 gets worse
    for folder, of_epoch in zip((before, after), margins, strict=True):
        write_store(folder, (of_epoch[..., None] * np.eye(2)[labels]).repeat(2, axis=0), labels)
    texts = datasets.Dataset.from_dict({"sample_id": range(6), "text": [HOSTILE, *(f"text {i}" for i in range(1, 6))]})
    page = write_comparison(before, after, texts)
    assert page == after / "_report" / "comparison.html"
    with Browser(page, tmp_path, "phone", "dark") as browser:
        assert browser.text("h1") == "B is better at 2 of 6 samples, and worse at 1"
        assert browser.text("#text") == "text 3"  # the sample that changed most
        assert (browser.text("#a"), browser.text("#b")) == ("0", "1")
        assert browser.column("gain") == sorted(browser.column("gain"), key=lambda gain: -abs(float(gain)))
        browser.choose("#show", "worse")
        assert browser.column("text") == ["text 2"]
        browser.choose("#show", "all")
        browser.find("#matrix button[title='A right, B right']").click()
        assert sorted(browser.column("id")) == ["0", "1", "5"]
        browser.click("#samples tbody tr:nth-child(1) button.open")
        assert browser.text("#text") in (HOSTILE, "text 1", "text 5")
        assert browser.run("return document.documentElement.scrollWidth") <= browser.width
        assert [one for one in browser.barriers() if one.startswith(("critical", "serious"))] == []
