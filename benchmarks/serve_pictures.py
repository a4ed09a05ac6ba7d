"""Pictures of the page: `python -m benchmarks.serve_pictures FILES --query "how do I orphan a package" --out docs`.

Makes an index of files by MiniLM, serves it, and takes the page in Chromium (apt-get install chromium chromium-driver):
serve_light.png, serve_dark.png, and serve_narrow.png of a telephone's width.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import smart_jax
from smart_jax.serve import serving

COLOURS = 128  # of a picture
SECONDS = 120
FADING = 0.5  # seconds


class View(NamedTuple):
    """View in which the page is taken."""

    name: str
    theme: str
    width: int
    height: int


VIEWS = (
    View("serve_light", "light", 1000, 780),
    View("serve_dark", "dark", 1000, 780),
    View("serve_narrow", "light", 390, 780),
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Yields a browser without a window; raises FileNotFoundError where none is installed."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        raise FileNotFoundError("pictures of the page need Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(paths[1]))
    try:
        yield driver
    finally:
        driver.quit()


def take(driver: webdriver.Chrome, view: View) -> Image.Image:
    """Returns a picture of the page that is open."""
    size = {"width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": view.width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": view.theme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    WebDriverWait(driver, SECONDS).until(lambda _: _is_drawn(driver))
    driver.execute_script("document.activeElement.blur()")
    time.sleep(FADING)
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def _is_drawn(driver: webdriver.Chrome) -> bool:
    hits, shown = (
        len(driver.find_elements(By.CSS_SELECTOR, name)) for name in (".hit", "#tokens:not([hidden]) button")
    )
    script = "return [...document.images].filter((image) => image.complete && image.naturalWidth).length"
    found = driver.find_element(By.ID, "status").text.endswith("ms.")
    return found and hits > 0 and shown > 0 and driver.execute_script(script) == hits


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="PDFs")
    parser.add_argument("--query", default="how do I orphan a package")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, smart_jax.Index(Path(folder) / "index", options.model) as index:
        print(index.add(list(options.files)))
        with serving(index, token="of the pictures") as url, chromium() as driver:
            driver.get(f"{url}/")
            driver.find_element(By.ID, "k").clear()
            driver.find_element(By.ID, "k").send_keys("6")
            for _ in range(2):  # nothing is compiled in the second
                driver.find_element(By.ID, "query").clear()
                driver.find_element(By.ID, "query").send_keys(options.query + "\n")
                WebDriverWait(driver, SECONDS).until(lambda _: _is_drawn(driver))
            for view in VIEWS:
                path = options.out / f"{view.name}.png"
                take(driver, view).quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
                print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
