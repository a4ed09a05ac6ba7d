"""Regular expressions that come with checkpoints: those that could take exponential or quadratic time are refused."""

from __future__ import annotations

import re

from smart_jax.files.checked_values import shown

LONGEST = 4096  # characters of an expression
MOST_REPEATS = 3  # unbounded ones in a row, in one alternative
_TOKEN = re.compile(
    r"(?P<escape>\\(?:[pPxuUN]\{[^{}]*\}|.))"
    r"|(?P<class>\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\])"
    r"|(?P<open>\((?:\?(?:[a-zA-Z-]*:|<?[=!]|>|P?<\w+>|[a-zA-Z-]+\)))?)"
    r"|(?P<close>\))|(?P<or>\|)"
    r"|(?P<repeat>[*+?][?+]?|\{\d*,?\d*\}[?+]?)|(?P<other>.)",
    re.DOTALL,
)


def check_pattern(pattern: object, name: str, *, most: int = MOST_REPEATS) -> str:
    """Returns a regular expression of a checkpoint, if it can be matched in bounded time.

    A repeated group with a repetition or an alternative in it may take time exponential in the text, and each unbounded
    repetition in a row multiplies it by the text's length. No published tokenizer or adapter has either.

    Args:
      pattern: as the file has it.
      name: of the file and the key, for the message.
      most: unbounded repetitions in one alternative.

    Raises:
      ValueError: it is no text, too long, has unbalanced brackets, or may take too long.

    Example:
      >>> check_pattern(r"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*", "tokenizer.json")[:5]
      '[^\\\\r\\\\'
      >>> check_pattern("(a+)+$", "tokenizer.json")
      Traceback (most recent call last):
      ValueError: tokenizer.json: the regular expression '(a+)+$' repeats a group that has repetitions or alternatives
    """
    if not isinstance(pattern, str) or len(pattern) > LONGEST:
        raise ValueError(f"{name}: {shown(pattern)} is no regular expression of at most {LONGEST} characters")
    groups: list[_Group] = [_Group()]
    closed: _Group | None = None  # the group that ends right here
    for token in _TOKEN.finditer(pattern):
        kind, text, before, closed = token.lastgroup, token[0], closed, None
        if kind == "open" and not text.endswith(")"):
            groups.append(_Group())
        elif kind == "close":
            if len(groups) == 1:
                raise ValueError(f"{name}: the regular expression {shown(pattern)} has a bracket that nothing opens")
            closed = groups.pop()
            groups[-1].add(closed)
        elif kind == "or":
            groups[-1].alternative()
        elif kind == "repeat" and not text.startswith("?"):
            if text[0] == "{" and not re.fullmatch(r"\{\d{0,3}(?:,\d{0,3})?\}[?+]?", text):
                raise ValueError(f"{name}: the regular expression {shown(pattern)} repeats more than 999 times")
            if before is not None and before.branches:
                raise ValueError(
                    f"{name}: the regular expression {shown(pattern)} repeats a group that has repetitions or "
                    "alternatives"
                )
            groups[-1].repeat()
        if groups[-1].repeats > most:
            raise ValueError(
                f"{name}: the regular expression {shown(pattern)} has more than {most} repetitions in a row"
            )
    if len(groups) > 1:
        raise ValueError(f"{name}: the regular expression {shown(pattern)} has a bracket that nothing closes")
    return pattern


class _Group:
    """Repetitions in the alternatives of a group."""

    def __init__(self) -> None:
        self.repeats, self.worst, self.branches = 0, 0, False

    def add(self, inner: _Group) -> None:
        self.repeats += max(inner.repeats, inner.worst)
        self.branches = self.branches or inner.branches

    def alternative(self) -> None:
        self.worst, self.repeats, self.branches = max(self.worst, self.repeats), 0, True

    def repeat(self) -> None:
        self.repeats, self.branches = self.repeats + 1, True
