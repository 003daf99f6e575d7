"""The review in headless Chromium: decisions by keyboard, what the browser keeps of them, and the downloaded file."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from browser import CLASSES, FLIPPED, WRONG, Browser, needs_browser, write_run, write_store
from lstsd_hf import LogitsStore, clean, write_report

pytestmark = needs_browser

OTHER = CLASSES[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_report(folder, write_run(folder))


@pytest.fixture(scope="module")
def window(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(page, tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser) -> Browser:
    """The page in its initial state."""
    window.run("localStorage.clear()")
    window.open()
    return window


def decisions(browser: Browser) -> list[dict[str, str]]:
    browser.click("#download")
    return browser.downloaded("decisions.csv")


def test_ten_decisions_by_keyboard(browser: Browser) -> None:
    suspects = browser.column("id")[: len(FLIPPED)]
    given, suggested = browser.column("given"), browser.column("suggested")
    assert browser.find("#download").is_enabled() is False
    browser.find("#start").send_keys(Keys.ENTER)
    assert browser.text("#place") == f"Sample {WRONG}, 1 of {len(FLIPPED)}"
    browser.press("krdkrdkrdk")  # each goes on to the next
    assert browser.text("#progress") == f"10 of {len(FLIPPED)} decided"
    rows = decisions(browser)
    assert list(rows[0]) == ["sample_id", "decision", "label", "given", "suggested", "score"]
    assert [row["sample_id"] for row in rows] == suspects[:10]
    assert [row["decision"] for row in rows] == ["keep", "relabel", "drop"] * 3 + ["keep"]
    assert [row["label"] for row in rows] == [suggested[i] if i % 3 == 1 else "" for i in range(10)]
    assert [(row["given"], row["suggested"]) for row in rows] == list(zip(given, suggested, strict=True))[:10]
    assert [f"{float(row['score']):.3f}" for row in rows] == browser.column("score")[:10]

    # Decided samples are skipped, and shown in the table.
    assert browser.text("#place").startswith(f"Sample {suspects[10]}, 11 of")
    assert browser.column("decision")[:3] == ["keep", f"relabel: {suggested[1]}", "drop"]

    # Decisions are taken back one by one, and the sample is shown again.
    browser.click("#review-title")
    browser.press("uu")
    assert browser.text("#progress") == f"8 of {len(FLIPPED)} decided"
    assert browser.text("#place").startswith(f"Sample {suspects[8]}, ")


def test_any_label_by_its_number_and_by_choice(browser: Browser) -> None:
    browser.click("#start")
    assert browser.text("#given") == "bad"
    browser.press("1")  # the given label: no change
    browser.press("9")  # there is no ninth class
    assert browser.text("#place").startswith(f"Sample {WRONG}, ")
    browser.press("2")
    browser.choose("#new", str(CLASSES.index(OTHER)))
    browser.find("#new").send_keys("k")  # a field has its own keys
    assert browser.text("#progress").startswith("1 of ")
    if browser.text("#given") == OTHER:
        browser.choose("#new", "0")
    chosen = browser.run("const list = document.getElementById('new'); return list.value")
    browser.find("#new").send_keys(Keys.ENTER)
    rows = decisions(browser)
    assert (rows[0]["decision"], rows[0]["label"], rows[0]["suggested"]) == ("relabel", OTHER, "good")
    assert rows[1]["label"] == CLASSES[int(chosen)]


def test_back_and_forth(browser: Browser) -> None:
    browser.click("#start")
    first = browser.text("#place")
    browser.press("p")
    assert f"{len(FLIPPED)} of {len(FLIPPED)}" in browser.text("#place")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#place") == first
    browser.press("k")
    browser.press(Keys.ARROW_LEFT)
    assert browser.text("#place") == first
    assert browser.find("[data-key=k]").get_attribute("aria-pressed") == "true"
    browser.press("d")  # another decision in its place
    assert [row["decision"] for row in decisions(browser)] == ["drop"]


def test_keys_act_in_the_review_alone(browser: Browser) -> None:
    browser.find("#query").send_keys("kdr")
    browser.find(".dt-search input").send_keys("kdr")
    browser.find("body").send_keys("k")
    assert browser.text("#progress") == f"0 of {len(FLIPPED)} decided"


def test_decisions_survive_a_reload_and_are_seen_in_another_window(browser: Browser) -> None:
    browser.click("#start")
    browser.press("kd")
    before = decisions(browser)
    place = browser.text("#place")
    browser.open()
    assert browser.text("#progress") == f"2 of {len(FLIPPED)} decided"
    assert browser.text("#place") == place  # the first that is not decided
    assert decisions(browser) == before
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open()
    browser.click("#start")
    browser.press("k")
    browser.driver.close()
    browser.driver.switch_to.window(first)
    browser.wait(lambda: browser.text("#progress") == f"3 of {len(FLIPPED)} decided")
    browser.find("[data-key=u]").click()
    browser.find("[data-key=u]").click()
    assert [row["decision"] for row in decisions(browser)] == ["keep"]


def test_all_above_a_score_are_accepted_and_taken_back_at_once(browser: Browser) -> None:
    browser.click("#start")
    browser.press("k")
    browser.run("arguments[0].value = '0.5'; arguments[0].dispatchEvent(new Event('input'))", browser.find("#least"))
    button = browser.find("#above [name=relabel]")
    assert button.text == f"Relabel {len(FLIPPED) - 1}"
    button.click()
    rows = decisions(browser)
    assert [row["decision"] for row in rows] == ["keep"] + ["relabel"] * (len(FLIPPED) - 1)
    assert all(row["label"] == row["suggested"] != row["given"] for row in rows[1:])
    assert browser.text("#progress") == f"{len(FLIPPED)} of {len(FLIPPED)} decided"
    browser.click("[data-key=u]")
    assert [row["decision"] for row in decisions(browser)] == ["keep"]
    # A sample whose own label is suggested can be dropped, but not relabelled.
    browser.run("arguments[0].value = '0'; arguments[0].dispatchEvent(new Event('input'))", browser.find("#least"))
    assert browser.find("#above [name=drop]").text == "Drop 119"
    assert button.text == f"Relabel {len(FLIPPED) - 1}"


def test_what_is_listed_can_be_reviewed(browser: Browser) -> None:
    browser.find("#matrix button[title='given good, suggested good']").click()
    browser.click("#samples thead th:nth-child(4) .dt-column-title")  # the least suspicious first
    listed = browser.column("id")
    browser.click("#these")
    browser.press("dd")
    rows = decisions(browser)
    assert sorted(row["sample_id"] for row in rows) == sorted(listed[:2])
    assert browser.text("#progress") == f"0 of {len(FLIPPED)} decided, and 2 more"
    browser.choose("#show", "decided")
    assert sorted(browser.column("id")) == sorted(listed[:2])


def test_a_browser_that_keeps_nothing_says_so(page: Path, tmp_path: Path) -> None:
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('not allowed'); }})"
    with Browser(page, tmp_path, script=refuse) as browser:
        assert browser.text("#failure").endswith("cannot be read: not allowed")
        browser.click("#start")
        browser.press("kr")
        assert browser.text("#failure").startswith("This browser keeps no decisions, so download them")
        assert len(decisions(browser)) == 2


def test_lstsd_clean_follows_the_file_and_a_name_that_is_a_formula_has_an_apostrophe_in_front(tmp_path: Path) -> None:
    names = ['=HYPERLINK("a, b")', "-1", "+a"]
    texts = write_run(tmp_path, names)
    labels = LogitsStore.open(tmp_path / "_logits").read_labels()
    assert labels is not None
    texts.add_column("label", [names[label] for label in labels]).to_csv(tmp_path / "train.csv")
    with Browser(write_report(tmp_path, texts), tmp_path) as browser:
        browser.click("#start")
        browser.press("kd" + "r" * (len(FLIPPED) - 2))
        browser.click("#download")
        browser.wait((tmp_path / "decisions.csv").is_file)
        done = clean(tmp_path, tmp_path / "train.csv", tmp_path / "clean.csv", decisions=tmp_path / "decisions.csv")
        rows = {row["sample_id"]: row for row in browser.downloaded("decisions.csv")}
    assert {row["label"] for row in rows.values()} == {"", "'" + names[0], "-1", "'" + names[2]}
    assert (done.dropped, sum(done.relabelled.values())) == (1, len(FLIPPED) - 2)
    with (tmp_path / "clean.csv").open(encoding="utf-8", newline="") as lines:
        cleaned = {row["sample_id"]: row["label"] for row in csv.DictReader(lines)}
    (dropped,) = (sample_id for sample_id, row in rows.items() if row["decision"] == "drop")
    assert dropped not in cleaned
    for sample_id, label in cleaned.items():
        was_wrong = rows.get(sample_id, {}).get("decision") == "relabel"
        assert label == names[int(sample_id) % 3 if was_wrong else labels[int(sample_id)]]


def test_a_regression_with_gaps_and_without_texts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=30).astype(np.float32)
    labels[4] = -1
    predictions = labels + rng.normal(0, 0.1, (2, 30)).astype(np.float32)
    predictions[:, 4] = labels[4] + 3
    predictions[0, 4] = np.nan
    predictions[:, 9] = np.nan
    labels[5], predictions[:, 5] = 0, 1.25e-4
    page = write_report(write_store(tmp_path, predictions[:, :, None], labels))
    with Browser(page, tmp_path) as browser:
        assert browser.text("h1") == "1 of 29 scores looks wrong"
        assert "no prediction in any epoch: 1. They are not" in browser.text("main")
        assert "Showing 1 to 25 of 29 entries" in browser.text(".dt-info")
        assert browser.column("id")[0] == "4"
        assert browser.all("[data-key=r], #matrix, #new") == []
        browser.click("summary")
        assert [cell.text for cell in browser.all("#epochs td")] == ["0", "no prediction", "1", "2"]
        browser.click("#samples thead th:nth-child(1) .dt-column-title")
        given = [float(value) for value in browser.column("given")]
        assert given == sorted(given)
        browser.click("#start")
        browser.press("r1d")  # a score can only be kept or dropped
        (row,) = decisions(browser)
        assert (row["sample_id"], row["decision"], row["label"]) == ("4", "drop", "")
        assert (row["given"], row["suggested"]) == ("-1", "")
        browser.find("#query").send_keys("5\n")
        assert browser.text("[data-measure=mean_absolute_error]") == "0.000125"
        browser.find("#query").send_keys("00\n")
        assert browser.text("#found") == "no id on this page matches"
        assert [one for one in browser.barriers() if one.startswith(("critical", "serious"))] == []


@pytest.mark.slow
def test_one_of_several_labels_is_flipped_and_a_sample_dropped_with_all(tmp_path: Path) -> None:
    given = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    against = np.array([[0, 4], [3, 2], [1, 0], [0, 0]])  # by how much the model contradicts each label; 0: it agrees
    logits = np.where(given == 1, 1, -1) * np.where(against > 0, -against, 3)
    write_store(tmp_path, np.stack([logits, logits]).astype(np.float32), given.astype(np.float32))
    config = {"problem_type": "multi_label_classification", "id2label": {0: "joy", 1: "<b>fear</b>"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with Browser(write_report(tmp_path), tmp_path) as window:
        assert window.text("h1") == "4 of 8 labels look wrong"
        assert window.all("#new, [data-key=r]") == []
        assert [window.column(name)[:4] for name in ("id", "label", "looks", "given")] == [
            ["0", "1", "1", "2"],
            ["<b>fear</b>", "joy", "<b>fear</b>", "joy"],
            ["missing", "added", "added", "missing"],
            ["no", "yes", "yes", "no"],
        ]
        window.click("#start")
        assert (window.text("#place"), window.text("#own")) == ("Sample 0, 1 of 4 · <b>fear</b>", "joy")
        assert (window.text("#given"), window.text("#suggested")) == ("no", "yes, looks missing")
        assert window.text("[data-key=f]") == "F Add it"
        window.press("1f")  # number keys choose no label here
        assert window.text("[data-key=f]") == "F Take it away"
        window.press("d")  # both labels of sample 1
        assert window.text("#place").startswith("Sample 2, 4 of 4")
        window.press("k")
        assert window.text("#progress") == "4 of 4 decided"
        assert window.column("decision")[:4] == ["flip", "drop", "drop", "keep"]
        rows = decisions(window)
        made = [(row["sample_id"], row["decision"], row["label"], row["given"], row["suggested"]) for row in rows]
        assert made == [
            ("0", "flip", "<b>fear</b>", "no", "yes"),
            ("1", "drop", "joy", "yes", "no"),
            ("1", "drop", "<b>fear</b>", "yes", "no"),
            ("2", "keep", "joy", "no", "yes"),
        ]
        window.open()  # decisions are kept by sample and label
        window.find("#query").send_keys("1\n")
        window.click("#review-title")
        window.press("f")  # that sample stays after all, so its other label is open again
        assert window.column("decision")[:4] == ["flip", "flip", "", "keep"]
        window.press("u")
        assert window.column("decision")[:4] == ["flip", "drop", "drop", "keep"]
        window.find("#matrix button[title='label joy, looks missing']").click()
        assert window.column("id") == ["2"]
        assert [one for one in window.barriers() if one.startswith(("critical", "serious"))] == []
