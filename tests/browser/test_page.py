"""The page of `smart_jax.serve` in a real browser, over page images and over the texts of PDFs."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys

import smart_jax
from recipes.tiny import Canvas
from smart_jax.serve import serving
from tests.browser.page import Page
from tests.small_pdf import write_pdf

pytestmark = pytest.mark.browser

TOKEN = "a long secret"
HOSTILE = "<b>pump</b> <script>window.wrong = 1</script>"
LINES = (
    "Return the revenue by region and quarter.",
    "Raise an error if the code is wrong.",
    "A table of values, one for each name.",
    "The pump starts when pressure falls.",
)
QUESTION = "error code"
FOUND = "page 2"  # that answers it


def image_index(folder) -> smart_jax.Index:
    """Page images, by the embedded model."""
    rng = np.random.default_rng(0)
    index = smart_jax.Index(folder / "index", model="tiny")
    for i, line in enumerate(LINES):
        Canvas(128, 256).draw(line, rng)[0].save(folder / f"page {i + 1}.png")
        index.add([folder / f"page {i + 1}.png"], metadata={"year": 2020 + i})
    return index


def text_index(folder) -> smart_jax.Index:
    """Pages of a PDF as texts, by MiniLM."""
    pages = [[(20, 350 - 20 * j, 10, part) for j, part in enumerate(line.split(" ", 3))] for line in LINES]
    index = smart_jax.Index(folder / "index", model="minilm")
    for i, page in enumerate(pages):
        index.add([write_pdf(folder / f"page {i + 1}.pdf", [page], [])], metadata={"year": 2020 + i})
    return index


@pytest.fixture(scope="module", params=[image_index, text_index], ids=["images", "texts"])
def served(request, tmp_path_factory, browser):
    """The page of an index of four pages that is not changed."""
    with request.param(tmp_path_factory.mktemp("served")) as index, serving(index) as url:
        yield Page(browser, url)


@pytest.fixture
def page(served):
    served.open().log()
    yield served
    assert served.log() == []


@contextmanager
def changing(browser, folder):
    """The page of an index that may be changed, and the index."""
    index = smart_jax.Index(folder / "index", model="tiny")
    index.add([{"text": "errors by code"}, {"text": HOSTILE}], ids=["note", "<img src=x onerror=alert(1)>"])
    with index, serving(index, token=TOKEN, warm_up=False) as url:
        yield Page(browser, url), index


def test_search_shows_hits_with_their_evidence(page):
    hits = page.search(QUESTION)
    assert len(hits) == 4 and FOUND in hits[0]
    first = page.one(".hit")
    assert page.run("return arguments[0].querySelector('img').naturalWidth", first) > 200
    boxes = page.all(".hit:first-child .box")
    assert boxes and not page.one("#error").is_displayed()
    picture = page.one(".hit:first-child img").rect
    for box in boxes:  # each lies on the picture
        assert (
            picture["x"] - 2 <= box.rect["x"]
            and box.rect["x"] + box.rect["width"] <= picture["x"] + picture["width"] + 2
        )
    words = "".join(button.text for button in page.all("#tokens button"))
    assert words == QUESTION.replace(" ", "")


def test_the_switch_chooses_the_score(page):
    page.search(QUESTION)
    hybrid = page.text(".hit .parts")
    assert page.shown() > 0
    page.one("input[value=pooled]").click()  # searches again
    page.wait(lambda: page.text(".hit .parts") != hybrid)
    page.hits()
    assert page.shown() == 0 and not page.one("#tokens").is_displayed()
    score, pooled = (
        float(part.split()[-1]) for part in page.text(".hit .parts").replace(":", "").split(",")[0].split(" pooled ")
    )
    assert score == pooled
    page.one("input[value=late]").click()
    page.wait(lambda: page.all(".hit .box"))
    assert "mode=late" in page.driver.current_url


def test_each_word_is_a_switch(page):
    page.search(QUESTION)
    before = page.shown()
    away = ActionChains(page.driver).move_to_element(page.one("h1"))
    for button in page.all("#tokens button"):
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
    away.perform()
    assert page.shown() == 0
    for button in page.all("#tokens button"):
        button.click()
    away.perform()
    assert page.shown() == before
    word = page.all("#tokens button")[0]
    ActionChains(page.driver).move_to_element(word).perform()  # its place alone, in every hit
    titles = {box.get_attribute("title") for box in page.all(".box")}
    assert titles == {word.text}


def test_filters(page):
    page.search(QUESTION)

    def condition(key, operator, value):
        page.one("#add-condition").click()
        row = page.all(".condition")[-1]
        inputs = row.find_elements("css selector", "input")
        inputs[0].send_keys(key)
        row.find_element("css selector", f"option[value={operator}]").click()
        inputs[1].send_keys(value)

    condition("year", "gte", "2022")
    page.one("#search button[type=submit]").click()
    page.wait(lambda: len(page.all(".hit")) == 2)
    condition("file", "eq", page.text(".hit h2").split(". ", 1)[1].split(",")[0])
    page.one("#search button[type=submit]").click()
    page.wait(lambda: len(page.all(".hit")) == 1)
    page.all(".condition button")[1].click()
    page.wait(lambda: len(page.all(".hit")) == 2)
    page.all(".condition button")[0].click()
    page.wait(lambda: len(page.all(".hit")) == 4)


def test_why_one_is_above_the_next(page):
    page.search(QUESTION)
    scores = [float(parts.text.split(":")[0]) for parts in page.all(".parts")]
    page.one(".actions button").click()
    page.wait(lambda: page.all(".why table"))
    difference = float(page.text(".why caption").split(" ")[0].replace("−", "-"))
    assert abs(difference - scores[0] + scores[1]) < 2e-3
    assert len(page.all(".why tr")) > 2
    page.one(".actions button").click()
    page.wait(lambda: not page.all(".why table"))


def test_the_keyboard_alone_is_enough(page):
    keys = ActionChains(page.driver)
    page.run("document.activeElement.blur()")
    keys.send_keys("/").send_keys(QUESTION).send_keys(Keys.ENTER).perform()
    page.hits()
    active = "return document.activeElement"
    ActionChains(page.driver).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN).perform()
    assert page.run(active).get_attribute("aria-label").startswith("2. ")
    ActionChains(page.driver).send_keys(Keys.ARROW_UP, Keys.ENTER).perform()
    page.wait(lambda: page.one("#large").is_displayed() and page.all("#large .box"))
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait(lambda: not page.one("#large").is_displayed())
    assert page.run(active).get_attribute("aria-label").startswith("1. ")
    ActionChains(page.driver).send_keys(Keys.ARROW_UP).perform()
    assert page.run(active).get_attribute("id") == "query"
    for _ in range(12):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        if page.run("return document.activeElement.parentElement.id") == "tokens":
            break
    ActionChains(page.driver).send_keys(Keys.SPACE).perform()
    assert page.run(active).get_attribute("aria-pressed") == "false"


def test_the_address_names_the_search(page):
    hits = page.search(QUESTION, mode="late")
    page.open(page.driver.current_url.removeprefix(page.url))
    assert page.hits() == hits
    assert page.one("input[value=late]").is_selected()


@pytest.mark.parametrize("width", [320, 768])
def test_a_narrow_screen(page, width):
    size = {"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.search(QUESTION)
        page.one("#changes summary").click()
        assert page.run("return document.documentElement.scrollWidth") <= width
        for selector in ("#query", "#search button", "#add-condition", ".hit", ".hit img", "#tokens button"):
            place = page.one(selector).rect
            assert place["x"] >= 0 and place["x"] + place["width"] <= width, selector
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_are_readable(page, theme):
    page.search(QUESTION)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        paper = luminance(page, "document.body", "backgroundColor")
        assert paper > 0.8 if theme == "light" else paper < 0.1
        for selector, behind in (("#status", "body"), (".hit h2", ".hit"), (".hit .parts", ".hit"), ("#about", "body")):
            ink = luminance(page, f"document.querySelector('{selector}')", "color")
            ground = luminance(page, f"document.querySelector('{behind}')", "backgroundColor")
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, selector  # WCAG, level AA
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(page: Page, element: str, name: str) -> float:
    """The relative luminance of a colour, after WCAG 2."""
    colour = page.run(f"return getComputedStyle({element}).{name}")
    parts = np.array([float(part) for part in colour.strip("rgba()").split(",")[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_files_are_added_and_removed(browser, tmp_path):
    Canvas(128, 256).draw(LINES[3], np.random.default_rng(0))[0].save(tmp_path / "the <i>pump.png")
    (tmp_path / "bad.pdf").write_text("no pdf")
    with changing(browser, tmp_path) as (page, index):
        page.open()
        page.search("pump")
        page.one("#changes summary").click()
        page.one("#files").send_keys(str(tmp_path / "the <i>pump.png"))
        page.one("#metadata").send_keys('{"year": 2025}')
        page.one("#upload button").click()
        assert "token (401)" in page.error() and len(index) == 2
        page.one("#token").send_keys(TOKEN)
        page.one("#upload button").click()
        page.wait(lambda: page.text("#status") == "1 items added, 0 unchanged.")
        assert not page.one("#error").is_displayed()
        page.wait(lambda: len(page.all(".hit")) == 3)  # searched again
        assert page.text("#uploads li span") == "the _i_pump.png" and "3 items" in page.text("#about")
        assert index.items({"year": 2025})

        page.one("#metadata").clear()
        page.one("#files").send_keys(str(tmp_path / "bad.pdf"))
        page.one("#upload button").click()
        assert "bad.pdf" in page.error() and str(tmp_path) not in page.error() and len(index) == 3

        page.one("#uploads button").click()
        assert len(index) == 3 and page.text("#uploads button") == "Really?"
        page.one("#uploads button").click()
        page.wait(lambda: not page.all("#uploads li"))
        assert len(index) == 2 and not list((tmp_path / "index-uploads").iterdir())
        page.wait(lambda: len(page.all(".hit")) == 2)
        for _ in range(2):
            page.all(".hit:first-child .actions button")[-1].click()
        page.wait(lambda: len(page.all(".hit")) == 1)
        assert len(index) == 1


def test_texts_are_texts(browser, tmp_path):
    with changing(browser, tmp_path) as (page, _):
        page.open().log()
        page.search("pump")
        assert HOSTILE in [text.text for text in page.all(".hit .text")]
        assert "<img" in page.all(".hit h2")[0].text + page.all(".hit h2")[1].text
        assert not page.all(".hit b, .hit script, .hit h2 img") and page.run("return window.wrong") is None
        assert page.all("mark")
        assert page.log() == []


def test_errors_are_shown_as_text(browser, tmp_path):
    with changing(browser, tmp_path) as (page, _):
        page.open()
        page.one("#add-condition").click()
        page.all(".condition input")[0].send_keys("page")
        page.one(".condition option[value=contains]").click()
        page.all(".condition input")[1].send_keys("<b>")
        page.one("#query").send_keys("pump", Keys.ENTER)
        assert "holds no list" in page.error() and "(422)" in page.error()
        page.one(".condition button").click()
        page.hits()
        assert not page.one("#error").is_displayed()
    page.one("#query").send_keys(" again", Keys.ENTER)  # the server has ended
    assert "cannot be reached" in page.error()


def test_only_the_last_search_shows(browser, tmp_path, monkeypatch):
    gate, encode = threading.Event(), smart_jax.Index.encode_query

    def slow(index, items):
        if items[0]["text"] == "slow":
            assert gate.wait(30)
        return encode(index, items)

    monkeypatch.setattr(smart_jax.Index, "encode_query", slow)
    with changing(browser, tmp_path) as (page, _):
        page.open()
        page.one("#query").send_keys("slow", Keys.ENTER)
        page.wait(lambda: page.text("#status") == "Searching …")
        page.one("#query").clear()
        page.one("#query").send_keys("errors by code", Keys.ENTER)
        gate.set()
        assert page.hits()[0] == "1. note"
        assert "".join(button.text for button in page.all("#tokens button")) == "errorsbycode"
        assert "q=errors" in page.driver.current_url


def test_the_description_of_the_api(served):
    served.driver.get(f"{served.url}/docs")
    served.wait(lambda: len(served.all("#routes section")) > 10)
    assert "/search" in served.text("#routes") and not served.one("#error").is_displayed()
    assert served.log() == []
