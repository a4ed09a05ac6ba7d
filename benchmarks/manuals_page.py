"""Three manuals by the page of `smart-jax index serve`, in a browser: a part of `python -m benchmarks.manuals --page`.

Needs Chromium and its driver (Debian's packages chromium and chromium-driver), and selenium.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

TOKEN = "a token for these manuals"
SECONDS = 300  # in which a manual is uploaded and encoded
SIZE = (1100, 1400)  # of the window


@contextlib.contextmanager
def served(folder: Path, index: str) -> Iterator[str]:
    """Serves an index by the command line, and yields its address."""
    script = Path(sys.executable).with_name("smart-jax")
    command = [script, "index", "serve", index, "--port", "0", "--token", TOKEN]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if (found := re.search(r"http://\S+?(?=,|\s)", line)) is None:
                raise RuntimeError(f"the server did not start: {line}")
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
    if process.returncode:
        raise RuntimeError(f"the server ended with exit code {process.returncode}")


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Starts Chromium without a window.

    Raises:
      FileNotFoundError: it is not installed.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise FileNotFoundError("there is no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        yield opened


class Page:
    """The page, as somebody uses it."""

    def __init__(self, driver: webdriver.Chrome, url: str):
        """Opens it."""
        self.driver = driver
        driver.get(url)
        self._until("#about", "items")

    def ask(self, question: str) -> list[str]:
        """Asks by the search box and returns file and page of each hit, "manual.pdf#12", the best first."""
        self._click("input[value=hybrid]")
        box = self._one("#query")
        box.clear()
        box.send_keys(question)
        self._forget()
        self._click("#search button[type=submit]")
        self._until("#status", "ms.")
        titles = (each.text for each in self.driver.find_elements(By.CSS_SELECTOR, ".hit h2"))
        return [re.sub(r"^\d+\. (.*), page (\d+)$", r"\1#\2", title) for title in titles]

    def upload(self, file: Path) -> str:
        """Uploads a file and returns what the page says."""
        self.driver.execute_script("document.querySelector('#changes').open = true")
        self._one("#token").send_keys(TOKEN)
        self._one("#files").send_keys(str(file.absolute()))
        self._forget()
        self._click("#upload button[type=submit]")
        return self._until("#status", "added")

    def remove_upload(self) -> str:
        """Removes the file that was uploaded, and returns what the page says."""
        self._forget()
        for _ in range(2):  # it asks whether that is meant
            self._click("#uploads button")
        return self._until("#status", "removed")

    def picture(self, path: Path) -> None:
        """Saves what is shown, once the evidence of the best hit is there."""
        WebDriverWait(self.driver, SECONDS).until(lambda d: d.find_elements(By.CSS_SELECTOR, ".hit .box, .hit mark"))
        time.sleep(1)  # for the picture of the page
        self.driver.save_screenshot(str(path))

    def _one(self, selector: str) -> webdriver.remote.webelement.WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def _click(self, selector: str) -> None:
        self._one(selector).click()

    def _forget(self) -> None:
        """Empties the status, so that an old one is not taken for the new."""
        self.driver.execute_script("document.querySelector('#status').textContent = ''")

    def _until(self, selector: str, text: str) -> str:
        WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: text in self._one(selector).text)
        return self._one(selector).text


def by_page(folder: Path, index: str, questions: Sequence[str], manual: Path, picture: Path) -> list[list[str]]:
    """Uploads a manual by the page, asks, takes a picture, removes the manual; prints what the page says.

    Returns:
      File and page of the hits of each question, while the manual was there.
    """
    with served(folder, index) as url, browser() as driver:
        page = Page(driver, url)
        print(f"- upload of {manual.name}: {page.upload(manual)}")
        found = [page.ask(question) for question in questions]
        page.ask(questions[0])
        page.picture(picture)
        print(f"- removal: {page.remove_upload()}")
        if gone := [each for each in page.ask(questions[-1]) if each.startswith(manual.name)]:
            raise RuntimeError(f"found after it was removed: {gone}")
    return found
