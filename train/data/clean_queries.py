"""Clean-up of the texts of training queries, as the paper's programs do it."""

from __future__ import annotations

import re

from train.data.outlines import Item

_PLACEHOLDERS = re.compile(r"<\|(image|video)_\d+\|>|<(?i:image|video)>")


def clean_query(item: Item, how: str, *, name: str = "query") -> Item:
    """Returns a query with its text cleaned.

    Args:
      item: the query; one without a text stays as it is.
      how: "none" = as it is; "placeholders" = without the marks of images and videos, such as "<image>", and with
        single spaces for white space (the paper's adapter run); "sentence" = without carriage returns and what is blank
        or a quotation mark at its end, and ended by a period unless it ends in ".", "?" or "!" (its LoRA run).
      name: of the query, for messages.

    Raises:
      ValueError: nothing is left of the text.

    Example:
      >>> clean_query({"text": "<image>\\nWhich  page? "}, "placeholders")
      {'text': 'Which page?'}
      >>> clean_query({"text": 'the revenue of 2021" '}, "sentence")
      {'text': 'the revenue of 2021.'}
    """
    text = item.get("text")
    if how == "none" or not isinstance(text, str):
        return item
    cleaned = " ".join(_PLACEHOLDERS.sub(" ", text).split()) if how == "placeholders" else _sentence(text)
    if not cleaned:
        raise ValueError(
            f"{name}: nothing is left of {text!r} when it is cleaned: repair it, or set data.clean_queries=none"
        )
    return {**item, "text": cleaned}


def _sentence(text: str) -> str:
    text = text.replace("\r", "").rstrip().rstrip('"')
    if not text.strip():
        return ""
    return text if text.endswith((".", "?", "!")) else f"{text}."
