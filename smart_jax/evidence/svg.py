"""Evidence as an SVG file that needs nothing else, in light and dark themes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image

from smart_jax.evidence.layout import (
    COLUMNS,
    SHOWN,
    best_picture,
    best_text,
    caption,
    follows_at_once,
    picture_marks,
    query_words,
    scaled,
    shown_lines,
    text_lines,
    text_marks,
    words_of,
)

if TYPE_CHECKING:
    from smart_jax.evidence.evidence import Evidence

WIDTH, SIZE = 960, 17
LARGEST = 1400  # pixels of the width of an embedded picture
_LETTER = WIDTH / (COLUMNS + 2)  # width of a letter of a text
_STYLE = """<style>
text{fill:#1a1a1a;font:17px sans-serif;white-space:pre}.small{fill:#666;font-size:14px}
.text{font:16px ui-monospace,monospace}.box{fill:#ff9600;stroke:#964600;stroke-width:3}.mark{fill:#ff9600}
@media (prefers-color-scheme:dark){text{fill:#eee}.small{fill:#aaa}.mark{fill:#b36900}}
</style>"""


def to_svg(evidence: Evidence, number: int | None) -> str:
    """Returns what `Evidence.svg` promises."""
    document = evidence.document
    head = [*_head(evidence)]
    top = 30 * len(head) + 10
    if document.pictures:
        picture = best_picture(evidence) if number is None else number
        image = document.open_picture(picture)
        height = WIDTH * image.height / image.width
        body = [*_boxes(evidence, picture, image, top, height)]
    elif document.texts:
        body = [*_text(evidence, best_text(evidence), top)]
        height = 26.0 * sum(line.startswith("<text") for line in body) + 20
    else:
        raise ValueError("the document was traced without pictures or texts: there is nothing to draw on")
    size = f'width="{WIDTH}" height="{top + height:.0f}" viewBox="0 0 {WIDTH} {top + height:.0f}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', _STYLE, *head, *body, "</svg>"]
    return "\n".join(lines) + "\n"


def data_url(image: Image.Image) -> str:
    """Returns a picture as a URL that holds it, at most `LARGEST` pixels wide: PNG or JPEG, whichever is smaller."""
    if image.width > LARGEST:
        image = scaled(image, LARGEST)
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        file = io.BytesIO()
        image.convert("RGB").save(file, kind, **options)
        files[kind] = file.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"


def _head(evidence: Evidence) -> Iterator[str]:
    words = []
    for token in query_words(evidence):
        emphasis = evidence.emphasis[token]
        look = f'opacity="{0.45 + 0.55 * emphasis:.2f}" font-weight="{700 if emphasis >= SHOWN else 400}"'
        gap = "" if follows_at_once(evidence, token) else " "
        words.append(f"{gap}<tspan {look}>{html.escape(evidence.query.label(token))}</tspan>")
    per_line = 12
    for row, first in enumerate(range(0, len(words), per_line)):
        yield f'<text x="10" y="{26 + 30 * row}">{"".join(words[first : first + per_line]).lstrip()}</text>'
    rows = -(-len(words) // per_line)
    yield f'<text class="small" x="10" y="{26 + 30 * rows}">{caption(evidence)}</text>'


def _boxes(evidence: Evidence, number: int, image: Image.Image, top: float, height: float) -> Iterator[str]:
    yield f'<image href="{data_url(image)}" y="{top}" width="{WIDTH}" height="{height:.1f}"/>'
    for mark in picture_marks(evidence, number):
        if mark.emphasis < SHOWN:
            continue
        left, upper, right, lower = mark.box
        place = f'x="{left * WIDTH:.1f}" y="{top + upper * height:.1f}"'
        size = f'width="{(right - left) * WIDTH:.1f}" height="{(lower - upper) * height:.1f}"'
        opacity = f'fill-opacity="{0.35 * mark.emphasis:.2f}" stroke-opacity="{mark.emphasis:.2f}"'
        title = html.escape(words_of(evidence, mark))
        yield f'<rect class="box" {place} {size} {opacity}><title>{title}</title></rect>'


def _text(evidence: Evidence, number: int, top: float) -> Iterator[str]:
    text = evidence.document.texts[number]
    marks = [mark for mark in text_marks(evidence, number) if mark.emphasis >= SHOWN]
    for row, (start, stop) in enumerate(shown_lines(text_lines(text), marks)):
        y = top + 26 * (row + 1)
        for mark in marks:
            first, last = (min(max(int(edge), start), stop) for edge in mark.box)
            if first < last:
                place = f'x="{_LETTER * (1 + first - start):.1f}" y="{y - 18}" width="{_LETTER * (last - first):.1f}"'
                yield f'<rect class="mark" {place} height="24" rx="3" fill-opacity="{0.7 * mark.emphasis:.2f}"/>'
        width = f'textLength="{_LETTER * (stop - start):.1f}" lengthAdjust="spacingAndGlyphs"' if stop > start else ""
        yield f'<text class="text" x="{_LETTER:.1f}" y="{y}" {width}>{html.escape(text[start:stop])}</text>'
