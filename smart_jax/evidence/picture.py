"""Evidence as a picture: boxes on a page or marked words of a text, under the query's words."""

from __future__ import annotations

import contextlib
import functools
import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from smart_jax.evidence.layout import (
    SHOWN,
    Mark,
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

AMBER, DARK = (255, 150, 0), (150, 70, 0)
INK, GRAY, PAPER = (26, 26, 26), (110, 110, 110), (255, 255, 255)
# Of the scripts that the fewest others have first; Pillow looks for them in the system's folders of fonts.
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)
SIZE, PADDING = 18, 12  # of letters, and around text


def to_picture(evidence: Evidence, number: int | None, *, width: int) -> Image.Image:
    """Returns what `Evidence.picture` promises."""
    document = evidence.document
    if number is not None and not 0 <= number < len(document.pictures):
        raise IndexError(f"picture {number} of a document with {len(document.pictures)}")
    if document.pictures:
        body = _with_boxes(evidence, best_picture(evidence) if number is None else number, width)
    elif document.texts:
        body = _text(evidence, best_text(evidence), width)
    else:
        raise ValueError("the document was traced without pictures or texts: there is nothing to draw on")
    head = _head(evidence, width)
    whole = Image.new("RGB", (width, head.height + body.height), PAPER)
    whole.paste(head, (0, 0))
    whole.paste(body, (0, head.height))
    return whole


def png_bytes(picture: Image.Image) -> bytes:
    """Returns the picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@functools.cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Returns a font of many scripts where the system has one, otherwise Pillow's, which is Latin."""
    for name in FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _head(evidence: Evidence, width: int) -> Image.Image:
    """Draws the query's words, each as strongly marked as it speaks, and the score below."""
    font, rows = _font(SIZE), [PADDING]
    pieces: list[tuple[float, int, int]] = []  # x, row, token
    x = float(PADDING)
    for token in query_words(evidence):
        length = font.getlength(evidence.query.label(token))
        x += 0 if follows_at_once(evidence, token) else SIZE / 2
        if x + length > width - PADDING and x > PADDING:
            rows.append(rows[-1] + round(1.6 * SIZE))
            x = float(PADDING)
        pieces.append((x, len(rows) - 1, token))
        x += length
    head = Image.new("RGB", (width, rows[-1] + round(3.2 * SIZE)), PAPER)
    draw = ImageDraw.Draw(head, "RGBA")
    for x, row, token in pieces:
        label, emphasis = evidence.query.label(token), float(evidence.emphasis[token])
        box = (x - 2, rows[row] - 2, x + font.getlength(label) + 1, rows[row] + 1.3 * SIZE)
        draw.rounded_rectangle(box, 3, fill=(*AMBER, round(150 * emphasis)))
        draw.text((x, rows[row]), label, fill=INK, font=font)
    draw.text((PADDING, rows[-1] + 1.7 * SIZE), caption(evidence), fill=GRAY, font=_font(SIZE - 4))
    return head


def _with_boxes(evidence: Evidence, number: int, width: int) -> Image.Image:
    page = scaled(evidence.document.open_picture(number), width).convert("RGBA")
    overlay = Image.new("RGBA", page.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(overlay)
    shown = [mark for mark in picture_marks(evidence, number) if mark.emphasis >= SHOWN]
    for mark in shown:
        draw.rectangle(_pixels(mark, page), fill=(*AMBER, round(90 * mark.emphasis)))
    for mark in shown:
        draw.rectangle(_pixels(mark, page), outline=(*DARK, round(255 * mark.emphasis)), width=3)
    for mark in shown:
        _tag(draw, words_of(evidence, mark), _pixels(mark, page), page.size)
    return Image.alpha_composite(page, overlay).convert("RGB")


def _pixels(mark: Mark, page: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = mark.box
    width, height = page.width - 1, page.height - 1
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def _tag(draw: ImageDraw.ImageDraw, words: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Writes the words on the upper edge of a box, or on the lower one where the picture ends."""
    font = _font(SIZE - 4)
    width, height = font.getlength(words) + 6, SIZE
    x = max(0.0, min(float(box[0]), size[0] - width))
    y = box[1] - height if box[1] >= height else box[3]
    draw.rectangle((x, y, x + width, y + height), fill=(*DARK, 235))
    draw.text((x + 3, y), words, fill=PAPER, font=font)


def _text(evidence: Evidence, number: int, width: int) -> Image.Image:
    text, font, step = evidence.document.texts[number], _font(SIZE - 2), round(1.5 * SIZE)
    marks = [mark for mark in text_marks(evidence, number) if mark.emphasis >= SHOWN]
    lines = shown_lines(text_lines(text), marks)
    body = Image.new("RGB", (width, 2 * PADDING + step * len(lines)), PAPER)
    draw = ImageDraw.Draw(body, "RGBA")
    for row, (start, stop) in enumerate(lines):
        y = PADDING + step * row
        for mark in marks:
            first, last = (min(max(int(edge), start), stop) for edge in mark.box)
            if first < last:
                edges = [PADDING + font.getlength(text[start:edge]) for edge in (first, last)]
                colour = (*AMBER, round(190 * mark.emphasis))
                draw.rounded_rectangle((edges[0] - 2, y - 1, edges[1] + 2, y + 1.25 * SIZE), 4, fill=colour)
        draw.text((PADDING, y), text[start:stop], fill=INK, font=font)
    return body
