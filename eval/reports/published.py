"""Figures that others have published, from `published.toml`, to stand beside ours."""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.toml")


@dataclasses.dataclass(frozen=True)
class Published:
    """One model's figures from one source.

    Attributes:
      model: name of the model.
      source, date: where the figures were read, and the day that they are from.
      figures: in [0, 1], by metric, then benchmark.
      averages: likewise by metric, then group of benchmarks; a group of several metrics is under all of them, "hit@1,
        ndcg@5".
      claims: what a source states of a group in words, by group; such an entry is for whatever model is evaluated.

    Example:
      >>> day = datetime.date(2026, 1, 2)
      >>> Published("rival", "a paper", day, figures={"ndcg@5": {"pages": 0.5}}).figures["ndcg@5"]["pages"]
      0.5
    """

    model: str
    source: str
    date: datetime.date
    figures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    averages: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    claims: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load(path: str | Path = FILE) -> list[Published]:
    """Reads a file's entries.

    Raises:
      ValueError: the file is not as `published.toml` is; the message names the entry.

    Example:
      >>> "Qwen3-VL-Embedding-2B" in {entry.model for entry in load()}
      True
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML ({error})") from error
    return [_entry(number, fields, path) for number, fields in enumerate(document.get("published", []), 1)]


def choose(entries: Sequence[Published], names: str, model: str) -> list[Published]:
    """Returns some of the entries.

    Args:
      entries: to choose from.
      names: of models, separated by commas; "all" = every entry; "" = those of `model`, and those with claims.
      model: a hub id or folder; the last part of its name counts, in capitals or not.

    Raises:
      ValueError: an unknown name; the message lists the known ones.

    Example:
      >>> entry = Published("Rival-2B", "a paper", datetime.date(2026, 1, 2))
      >>> [chosen.model for chosen in choose([entry], "", "someone/rival-2b")]
      ['Rival-2B']
    """
    if names == "all":
        return list(entries)
    if not names:
        return [entry for entry in entries if entry.claims or entry.model.lower() == Path(model).name.lower()]
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    known = {entry.model.lower(): entry.model for entry in entries}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(
            f"no published figures of {', '.join(map(repr, unknown))}: use some of {', '.join(known.values())}, or all"
        )
    return [entry for entry in entries if entry.model.lower() in wanted]


def _entry(number: int, fields: Mapping[str, Any], path: str | Path) -> Published:
    names = {field.name for field in dataclasses.fields(Published)}
    required = {"model", "source", "date"}
    if set(fields) - names or required - set(fields):
        raise ValueError(
            f"{path}, entry {number} has the keys {sorted(fields)}: it needs {sorted(required)}, and may "
            f"have {sorted(names - required)}"
        )
    for kind in ("figures", "averages"):
        for metric, values in fields.get(kind, {}).items():
            for name, value in values.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise ValueError(
                        f"{path}, entry {number} ({fields['model']}), {kind}, {metric}, {name}: {value!r} is "
                        "no number in [0, 1]"
                    )
    for name, claim in fields.get("claims", {}).items():
        if not isinstance(claim, str):
            raise ValueError(f"{path}, entry {number} ({fields['model']}), claims, {name}: {claim!r} is no text")
    return Published(**fields)
