"""Evidence as a fragment of HTML that needs nothing else: no script, no other file, light and dark themes."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from smart_jax.evidence.layout import (
    SHOWN,
    caption,
    follows_at_once,
    picture_marks,
    picture_name,
    query_words,
    shown_pictures,
    text_marks,
)
from smart_jax.evidence.svg import data_url

if TYPE_CHECKING:
    from smart_jax.evidence.evidence import Evidence

MOST_PICTURES = 8  # that are put into one fragment
# Colours of text are those of the page around it; marks are translucent, so that any text on them stays readable.
_STYLE = """
.smart-evidence{margin:0;font:15px/1.6 system-ui,sans-serif;max-width:60rem}
.smart-evidence .word{padding:.1em;border-radius:.3em;cursor:default;
 background:rgba(255,150,0,calc(var(--e)*.5))}
.smart-evidence .word:hover,.smart-evidence .word:focus{outline:2px solid #c86400}
.smart-evidence .parts{opacity:.7;font-size:.9em;margin:.3em 0}
.smart-evidence .page{position:relative;margin:.5em 0}
.smart-evidence .page img{display:block;width:100%}
.smart-evidence .page svg{position:absolute;inset:0;width:100%;height:100%}
.smart-evidence rect{fill:#ff9600;stroke:#964600;stroke-width:2px;vector-effect:non-scaling-stroke;
 fill-opacity:calc(var(--e)*.35);stroke-opacity:var(--e)}
.smart-evidence mark{color:inherit;border-radius:.2em;background:rgba(255,150,0,calc(var(--e)*.5))}
.smart-evidence .faint{visibility:hidden}.smart-evidence mark.faint{visibility:visible;background:none}
.smart-evidence .text{white-space:pre-wrap;overflow-wrap:anywhere;max-height:30rem;overflow:auto;
 border:1px solid rgba(128,128,128,.4);border-radius:.4em;padding:.6em}
.smart-evidence table{border-collapse:collapse;font-size:.85em}
.smart-evidence td,.smart-evidence th{padding:.1em .6em;text-align:left;border-bottom:1px solid rgba(128,128,128,.3)}
.smart-evidence td:nth-child(n+2):nth-last-child(n+2){text-align:right;font-variant-numeric:tabular-nums}
"""


def to_html(evidence: Evidence) -> str:
    """Returns what `Evidence.html` promises."""
    style = _STYLE + "".join(_pointing(token) for token in query_words(evidence))
    body = "".join(_body(evidence))
    parts = f'<p class="parts">{caption(evidence)}</p>'
    table = f"<details><summary>All tokens</summary>{_table(evidence)}</details>"
    return (
        f'<figure class="smart-evidence"><style>{style}</style><p>{_query(evidence)}</p>{parts}{body}{table}</figure>'
    )


def _pointing(token: int) -> str:
    """Returns the rules by which a word that is pointed at shows its own place alone."""
    pointed = f".smart-evidence:has(.w{token}:is(:hover,:focus))"
    return (
        f"{pointed} :is(rect,mark){{visibility:hidden}}{pointed} mark{{visibility:visible;background:none}}"
        f"{pointed} rect.t{token}{{visibility:visible;--e:1!important}}"
        f"{pointed} mark.t{token}{{background:rgba(255,150,0,.5)}}\n"
    )


def _query(evidence: Evidence) -> str:
    words = []
    for token in query_words(evidence):
        found = evidence.tokens[token]
        lift = "" if found.lift is None else f", lift {found.lift:+.2f}"
        title = f"{found.best}: cosine {found.cosine:.2f}, share {found.share:.3f}{lift}"
        style = f'tabindex="0" style="--e:{found.emphasis:.2f}" title="{html.escape(title)}"'
        gap = "" if follows_at_once(evidence, token) else " "
        words.append(f'{gap}<span class="word w{token}" {style}>{html.escape(found.text)}</span>')
    return "".join(words).lstrip()


def _body(evidence: Evidence) -> Iterator[str]:
    document = evidence.document
    shown = shown_pictures(evidence)[:MOST_PICTURES]
    for number in shown:
        name = html.escape(picture_name(evidence, number))
        if len(document.pictures) > 1:
            yield f'<p class="parts">{name}</p>'
        rects = "".join(_rects(evidence, number))
        yield (
            f'<div class="page"><img src="{data_url(document.open_picture(number))}" alt="{name}">'
            f'<svg viewBox="0 0 1 1" preserveAspectRatio="none">{rects}</svg></div>'
        )
    if document.page is None:
        for number, text in enumerate(document.texts):
            yield f'<div class="text">{_marked(evidence, number, text)}</div>'


def _rects(evidence: Evidence, number: int) -> Iterator[str]:
    for mark in picture_marks(evidence, number):
        left, top, right, bottom = mark.box
        faint = "" if mark.emphasis >= SHOWN else " faint"
        words = " ".join(evidence.query.label(token) for token in mark.tokens)
        place = f'x="{left:.4f}" y="{top:.4f}" width="{right - left:.4f}" height="{bottom - top:.4f}"'
        look = f'class="{_classes(mark.tokens)}{faint}" style="--e:{mark.emphasis:.2f}"'
        yield f"<rect {look} {place}><title>{html.escape(words)}</title></rect>"


def _classes(tokens: list[int]) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _marked(evidence: Evidence, number: int, text: str) -> str:
    """Returns a text with its marked words; where spans overlap each run of characters has the marks of all."""
    marks = text_marks(evidence, number)
    edges = sorted({0, len(text), *(int(edge) for mark in marks for edge in mark.box)})
    pieces = []
    for start, stop in itertools.pairwise(edges):
        on = [mark for mark in marks if mark.box[0] <= start and stop <= mark.box[1]]
        piece = html.escape(text[start:stop])
        if on:
            emphasis = max(mark.emphasis for mark in on)
            classes = _classes(sorted({token for mark in on for token in mark.tokens}))
            faint = "" if emphasis >= SHOWN else " faint"
            piece = f'<mark class="{classes}{faint}" style="--e:{emphasis:.2f}">{piece}</mark>'
        pieces.append(piece)
    return "".join(pieces)


def _table(evidence: Evidence) -> str:
    lifts, split = evidence.lifts is not None, evidence.pooled_shares is not None
    names = [
        "token",
        "cosine",
        "share",
        *(["pooled share"] if split else []),
        *(["lift"] if lifts else []),
        "best match",
    ]
    rows = ["".join(f"<th>{name}</th>" for name in names)]
    for token in evidence.tokens:
        cells = [token.text, f"{token.cosine:.3f}", f"{token.share:.4f}"]
        cells += [] if token.pooled_share is None else [f"{token.pooled_share:.4f}"]
        cells += [*([] if token.lift is None else [f"{token.lift:+.3f}"]), token.best]
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
