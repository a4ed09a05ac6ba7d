"""The pages of files: each becomes an item."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from smart_jax.index.documents import PDFS, TEXTS, GivenFile
from smart_jax.index.pdf import DPI, Pdf
from smart_jax.inputs import AUDIO_SUFFIXES

PdfMode = Literal["image", "text", "both"]


class Page(NamedTuple):
    """Page that becomes an item.

    Attributes:
      item: what the model takes, or what makes it when its turn comes.
      number: of the page, from 1; None = the file has no pages.
      text: of the item, where it has one.
    """

    item: Any | Callable[[], Any]
    number: int | None = None
    text: str | None = None

    def content(self) -> Any:
        """Returns what the model takes."""
        return self.item() if callable(self.item) else self.item


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings by which files are read.

    Attributes:
      pdf: what is read of a PDF's pages: images, texts, or both.
      dpi: pixels per inch of page images.
      images: whether the model reads images.
      audio: whether it hears audio.
    """

    pdf: PdfMode = "image"
    dpi: float = DPI
    images: bool = True
    audio: bool = False

    def described(self, given: GivenFile) -> str:
        """Returns what the items of a file depend on beside its content."""
        if given.path.suffix.lower() not in PDFS:
            return json.dumps({} if given.id is None else {"id": given.id})
        return json.dumps({"pdf": self.pdf} if self.pdf == "text" else {"pdf": self.pdf, "dpi": self.dpi})


class OpenFile:
    """A file whose pages can be read until it is closed.

    Attributes:
      given: the file.
    """

    def __init__(self, given: GivenFile, reading: Reading):
        """Opens the file.

        Raises:
          OSError, ValueError: it cannot be read; the message says why.
        """
        self.given, self._reading = given, reading
        self._pdf: Pdf | None = None
        suffix = given.path.suffix.lower()
        if suffix in PDFS:
            self._pdf = Pdf(given.path, password=given.password)
        elif suffix in AUDIO_SUFFIXES and not reading.audio:
            raise ValueError(f"'{given.path}' is audio, which the model of this index does not hear")
        elif suffix not in (*TEXTS, *AUDIO_SUFFIXES) and not reading.images:
            raise ValueError(f"'{given.path}' is an image, but the model of this index reads texts only")

    def __len__(self) -> int:
        """Number of pages."""
        return 1 if self._pdf is None else len(self._pdf)

    def close(self) -> None:
        """Closes the file."""
        if self._pdf is not None:
            self._pdf.close()

    def pages(self) -> Iterator[Page]:
        """Yields the pages in order; those without text are left out where only texts are read.

        Of a page that is damaged the item says so, where it is made.

        Raises:
          ValueError: no page has any text.
        """
        if self._pdf is None:
            yield self._single()
            return
        empty = True
        for index in range(len(self._pdf)):
            try:
                text = None if self._reading.pdf == "image" else self._pdf.text(index)
            except ValueError as error:
                empty = False
                yield Page(_raising(error), index + 1)
                continue
            if self._reading.pdf == "text" and not (text and text.strip()):
                continue
            empty = False
            yield Page({"text": text} if self._reading.pdf == "text" else self._rendered(index, text), index + 1, text)
        if empty:
            raise ValueError(f"'{self.given.path}' has no text: index its page images, with a model that reads images")

    def _single(self) -> Page:
        path = self.given.path
        if path.suffix.lower() not in TEXTS:
            return Page(path)
        text = path.read_text(encoding="utf-8", errors="replace")
        if not text.strip():
            raise ValueError(f"'{path}' is empty")
        return Page({"text": text}, None, text)

    def _rendered(self, index: int, text: str | None) -> Callable[[], Any]:
        pdf = self._pdf
        assert pdf is not None

        def render() -> Any:
            image = pdf.image(index, dpi=self._reading.dpi)
            return {"image": image, "text": text} if text and text.strip() else image

        return render


def _raising(error: ValueError) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail
