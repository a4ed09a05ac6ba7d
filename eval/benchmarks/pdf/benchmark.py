"""A benchmark from any PDF with an outline: its pages as images, its outline entries as queries.

A query is an entry's title without its numbering; the pages that entries of that title point to are relevant. Pages of
the table of contents are dropped, since they show every title. With white_out the heading is painted over on its page
(and in the page's running header) and taken out of its text, so that it can only be found by what stands below it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pypdfium2 as pdfium
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lazy_items import LazyItems
from eval.benchmarks.pdf.page_text import Box, PageText, clean_title, fold
from smart_jax.evidence import page_scale
from smart_jax.files import files_fingerprint

INSTRUCTION = "Find a document image that matches the given query."  # of visual-document tasks (arXiv:2605.24938)
MIN_LEADERS, LEADER_SHARE = 3, 0.3  # of a contents page: lines that end in dots and a page number
MIN_LISTED, LISTED_SHARE = 5, 0.5  # or lines that are a title and a page number

_LEADER = re.compile(r"(?:[.·…]\s?){4,}\s*(?:\d+|[ivxlc]+)?\s*$")
_PAGE_NUMBER = re.compile(r"\s+(?:\d+|[ivxlc]+)\s*$")
_TOP_OF_VIEW = {  # where each kind of destination keeps it
    pdfium.raw.PDFDEST_VIEW_XYZ: 1,
    pdfium.raw.PDFDEST_VIEW_FITH: 0,
    pdfium.raw.PDFDEST_VIEW_FITBH: 0,
    pdfium.raw.PDFDEST_VIEW_FITR: 3,
}
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One outline entry.

    Attributes:
      title: without numbering.
      page: index of the page.
      y: height that the entry points to, in PDF points from the page's bottom; None = not known.
    """

    title: str
    page: int
    y: float | None


def pdf_benchmark(
    path: str | Path,
    *,
    dpi: float = 72,
    white_out: bool = True,
    max_level: int = 99,
    name: str | None = None,
    instruction: str | None = INSTRUCTION,
) -> Benchmark:
    """Returns a PDF's pages as documents and its outline's entries as queries.

    Pages are rendered when they are used and not kept; their texts are for BM25.

    Args:
      path: of the PDF.
      dpi: pixels per inch of the page images.
      white_out: paint the headings over; entries whose heading is not found on its page are left out, with a warning.
      max_level: deepest outline level that is asked for, 0 = chapters.
      name: of the benchmark; None = the file's stem.
      instruction: of the queries.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a PDF, encrypted, without an outline, or without a usable entry; dpi is not positive.

    Example:
      >>> pdf_benchmark("no-such-file.pdf")
      Traceback (most recent call last):
      FileNotFoundError: no PDF no-such-file.pdf
    """
    path = Path(path)
    if dpi <= 0:
        raise ValueError(f"dpi is {dpi}: it must be positive")
    document = _open(path)
    entries = read_outline(document, max_level=max_level)
    if not entries:
        raise ValueError(f"{path} has no outline (bookmarks) with titles and pages: it cannot be made a benchmark")
    texts = [_page_text(document, i) for i in tqdm(range(len(document)), desc=path.name, unit="page", delay=2)]
    titles = {fold(entry.title) for entry in entries}
    kept = [i for i, page in enumerate(texts) if not page.blank and not is_contents_page(page.text, titles)]
    by_title: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.page in set(kept):
            by_title.setdefault(fold(entry.title), []).append(entry)
    masks: dict[int, set[int]] = {}
    if white_out:
        by_title, masks = _mask_headings(path, by_title, texts)
    if not by_title:
        raise ValueError(f"{path}: no outline entry is left as a query; try white_out=False or a larger max_level")
    groups = list(by_title.values())
    boxes = {i: texts[i].boxes(chars) for i, chars in masks.items()}
    return Benchmark(
        name=name or path.stem,
        queries=[group[0].title for group in groups],
        query_ids=[f"entry-{i:04d}" for i in range(len(groups))],
        corpus=_Pages(document, kept, boxes, dpi).items(source=f"{files_fingerprint([path])} {kept} {boxes} {dpi}"),
        corpus_ids=[_page_id(i) for i in kept],
        qrels={f"entry-{i:04d}": {_page_id(e.page): 1 for e in group} for i, group in enumerate(groups)},
        texts=[texts[i].without(masks.get(i, set())) for i in kept],
        instruction=instruction,
    )


def read_outline(document: pdfium.PdfDocument, *, max_level: int = 99) -> list[Entry]:
    """Returns the entries that have a page and a title of at least two letters, in the outline's order."""
    entries = []
    for bookmark in document.get_toc():
        title, destination = clean_title(bookmark.get_title()), bookmark.get_dest()
        page = None if destination is None else destination.get_index()
        if bookmark.level > max_level or page is None or sum(c.isalpha() for c in title) < 2:
            continue
        if page < len(document):
            entries.append(Entry(title, page, _height(destination)))
    return entries


def is_contents_page(text: str, titles: Iterable[str]) -> bool:
    """Returns whether a page's text is a table of contents.

    Args:
      text: of the page, with line breaks.
      titles: of the outline, as `fold` gives them.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    leaders = sum(bool(_LEADER.search(line)) for line in lines)
    if leaders >= MIN_LEADERS and leaders >= LEADER_SHARE * len(lines):
        return True
    known = set(titles)
    numbered = [_PAGE_NUMBER.sub("", line) for line in lines if _PAGE_NUMBER.search(line)]
    listed = sum(fold(clean_title(line)) in known for line in numbered)
    return listed >= MIN_LISTED and listed >= LISTED_SHARE * len(lines)


def _mask_headings(
    path: Path, by_title: dict[str, list[Entry]], texts: Sequence[PageText]
) -> tuple[dict[str, list[Entry]], dict[int, set[int]]]:
    """Returns the titles whose headings are all on their pages, and the characters to hide by page."""
    located: dict[str, list[Entry]] = {}
    masks: dict[int, set[int]] = {}
    for title, group in by_title.items():
        characters = [texts[entry.page].find_heading(entry.title, entry.y) for entry in group]
        if all(characters):
            located[title] = group
            for entry, chars in zip(group, characters, strict=True):
                masks.setdefault(entry.page, set()).update(chars)
    if len(located) < len(by_title):
        lost = [group[0].title for title, group in by_title.items() if title not in located]
        _logger.warning(
            "%s: %d of %d headings not found on their pages and left out, such as %r",
            *(path.name, len(lost), len(by_title), lost[0]),
        )
    return located, masks


def _open(path: Path) -> pdfium.PdfDocument:
    if not path.is_file():
        raise FileNotFoundError(f"no PDF {path}")
    try:
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        raise ValueError(f"{path} cannot be read as a PDF ({error}): damaged, encrypted, or another format") from error


def _page_text(document: pdfium.PdfDocument, index: int) -> PageText:
    page = document[index]
    try:
        return PageText.read(page)
    finally:
        page.close()


def _height(destination: pdfium.PdfDest) -> float | None:
    """Returns the top of the view that a destination asks for, in PDF points; None = it asks for none."""
    mode, position = destination.get_view()
    at = _TOP_OF_VIEW.get(mode)
    return position[at] if at is not None and at < len(position) and position[at] > 0 else None


def _page_id(index: int) -> str:
    return f"page-{index + 1:04d}"


class _Pages:
    """Renders pages of an open document, some boxes painted over."""

    def __init__(self, document: pdfium.PdfDocument, kept: Sequence[int], boxes: dict[int, list[Box]], dpi: float):
        self._document, self._kept, self._boxes, self._dpi = document, kept, boxes, dpi

    def items(self, source: str) -> LazyItems:
        return LazyItems(len(self._kept), lambda i: self.render(self._kept[i]), source=source)

    def render(self, index: int) -> Image.Image:
        """Returns an RGB image of a page of the document."""
        page = self._document[index]
        try:
            bitmap = page.render(scale=page_scale(page, self._dpi, f"page {index + 1}"))
            image = bitmap.to_pil().convert("RGB")
            converter = bitmap.get_posconv(page)
            for left, bottom, right, top in self._boxes.get(index, []):
                corners = [converter.to_bitmap(left, bottom), converter.to_bitmap(right, top)]
                _paint_over(image, corners)
            return image
        finally:
            page.close()


def _paint_over(image: Image.Image, corners: Sequence[tuple[int, int]]) -> None:
    """Fills a box, a pixel wider on each side, with the colour just left of it."""
    (left, right), (top, bottom) = (sorted(axis) for axis in zip(*corners, strict=True))
    beside = (min(max(left - 3, 0), image.width - 1), min(max((top + bottom) // 2, 0), image.height - 1))
    ImageDraw.Draw(image).rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=image.getpixel(beside))
