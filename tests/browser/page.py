"""The page in a browser: what tests do on it, and see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 60  # for a model to be compiled in


@dataclasses.dataclass
class Page:
    """The page of a server."""

    driver: Chrome
    url: str

    def open(self, address: str = "/") -> Page:
        self.driver.get(self.url + address)
        self.wait(lambda: "items" in self.text("#about"))
        return self

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def wait(self, condition: Callable[[], Any]) -> Any:
        wait = WebDriverWait(self.driver, SECONDS, 0.03, [StaleElementReferenceException, NoSuchElementException])
        return wait.until(lambda _: condition())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def search(self, query: str, *, mode: str | None = None) -> list[str]:
        """Searches by the form, and returns the headings of the hits when all have their evidence."""
        if mode is not None:
            self.one(f"input[value={mode}]").click()
        self.one("#query").clear()
        self.one("#query").send_keys(query)
        self.one("#search button[type=submit]").click()
        return self.hits()

    def hits(self) -> list[str]:
        self.wait(lambda: self.text("#status").endswith("ms.") and not self.all("ol.busy"))
        self.wait(lambda: len(self.all(".hit .page, .hit .text[data-number]")) >= len(self.all(".hit")))
        return [heading.text for heading in self.all(".hit h2")]

    def shown(self) -> int:
        """Number of boxes and marks."""
        return len(self.all(".hit .box")) + len(self.all(".hit mark"))

    def error(self) -> str:
        self.wait(lambda: self.one("#error").is_displayed())
        return self.text("#error")

    def log(self) -> list[str]:
        """Returns what the browser has complained of since."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
