"""Pages of PDF files: their images and their texts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from smart_jax.evidence import PageText, page_scale

DPI = 100.0  # pixels per inch of page images
PDFIUM = threading.RLock()  # the library is not made for several threads
INSTEAD = {0: " ", 2: "-", 0xFFFE: "-"}
INSTALL = "pip install 'smart_jax[index]'"


class Pdf:
    """An open PDF file; a context manager. Its pages can be read by several threads, one at a time.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path, *, password: str | None = None):
        """Opens the file.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged, of another format, or encrypted with another password.
          ImportError: pypdfium2 is not installed.
        """
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"no PDF '{path}'")
        pdfium = _pdfium()
        with PDFIUM:
            try:
                self._document = pdfium.PdfDocument(path, password=password)
            except pdfium.PdfiumError as error:
                asks = "password" in str(error).lower()
                remedy = "give its password" if asks else "it is damaged or of another format"
                raise ValueError(f"'{path}' cannot be read as a PDF ({error}): {remedy}") from error

    def __enter__(self) -> Pdf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        with PDFIUM:
            self._document.close()

    def __len__(self) -> int:
        """Number of pages."""
        return len(self._document)

    @contextlib.contextmanager
    def _page(self, index: int) -> Iterator[Any]:
        """Yields a page, and the library to this thread alone; raises ValueError where the page cannot be read."""
        with PDFIUM:
            try:
                with contextlib.closing(self._document[index]) as page:
                    yield page
            except _pdfium().PdfiumError as error:
                raise ValueError(
                    f"page {index + 1} of '{self.path}' cannot be read ({error}): it is damaged"
                ) from error

    def image(self, index: int, *, dpi: float = DPI) -> Image.Image:
        """Returns an RGB image of a page, counted from 0; raises ValueError where it is damaged or too large."""
        with self._page(index) as page:
            scale = page_scale(page, dpi, f"page {index + 1} of '{self.path}'")
            image: Image.Image = page.render(scale=scale).to_pil().convert("RGB")
        return image

    def page_text(self, index: int) -> PageText:
        """Returns the text of a page, counted from 0, with the places of its characters."""
        with self._page(index) as page:
            return PageText.read(page)

    def text(self, index: int) -> str:
        """Returns the text of a page, counted from 0, in the order in which the page has it."""
        raw = _pdfium().raw
        with self._page(index) as page, contextlib.closing(page.get_textpage()) as text:
            codes = [raw.FPDFText_GetUnicode(text, i) for i in range(text.count_chars())]
        return characters(codes)


def characters(codes: Sequence[int]) -> str:
    """Returns the text of PDFium's codes; a line's last hyphen is one, and what is no character is replaced."""
    text: list[str] = []
    for i, code in enumerate(codes):
        if 0xDC00 <= code < 0xE000 and i and 0xD800 <= codes[i - 1] < 0xDC00:
            text[-1] = chr(0x10000 + ((codes[i - 1] - 0xD800) << 10) + code - 0xDC00)
        elif code in INSTEAD:
            text.append(INSTEAD[code])
        else:
            text.append(chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd")
    return "".join(text)


def _pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError as error:
        raise ImportError(f"PDF files are read by pypdfium2: {INSTALL}") from error
    return pypdfium2
