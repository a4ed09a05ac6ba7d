"""A browser for the tests of the page: Chromium and its driver, from the distribution's packages."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

INSTALL = "apt-get install --no-install-recommends chromium chromium-driver fonts-dejavu-core"


def pytest_collection_modifyitems(config, items):
    """They run only where a marker expression asks for them: most machines have no browser."""
    if "browser" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("browser")]


def chromium() -> webdriver.Chrome:
    """A new browser without a window."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        raise FileNotFoundError(f"the tests of the page need Chromium: {INSTALL}")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(paths[1]))


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests."""
    driver = chromium()
    yield driver
    driver.quit()
