"""One key of a config with several values: a run for each, over the same frozen states."""

from __future__ import annotations

import ast
import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config import TrainConfig, from_config_dict


def sweep(values: Mapping[str, Any], text: str) -> list[TrainConfig]:
    """Returns the configs of the runs, which differ in one key, and in the run directory.

    Adapters whose states may be computed once share those in the directory of all runs.

    Args:
      values: settings by key, as `from_config_dict` takes them.
      text: "KEY=VALUE,VALUE,...".

    Raises:
      ValueError, TypeError: the text is not of this form, or a key or a value is not one of the config's.

    Example:
      >>> settings = {"output": "runs/x", "loss": {}}
      >>> [(run.output, run.loss.temperature) for run in sweep(settings, "loss.temperature=0.03,0.05")]
      [('runs/x/01', 0.03), ('runs/x/02', 0.05)]
    """
    key, _, listed = text.partition("=")
    if not key or not listed:
        raise ValueError(f"--sweep is '{text}': expected KEY=VALUE,VALUE,..., such as loss.temperature=0.03,0.05")
    runs = []
    for number, value in enumerate(listed.split(","), start=1):
        settings: dict[str, Any] = copy.deepcopy(dict(values))
        *parts, name = key.split(".")
        holder = settings
        for part in parts:
            holder = holder.setdefault(part, {})
        holder[name] = _parsed(value)
        whole = from_config_dict(settings)
        settings["output"] = str(Path(whole.output) / f"{number:02}")
        if whole.data.cache_states == "auto" and whole.trainable == "adapter":
            settings.setdefault("data", {})["cache_states"] = str(Path(whole.output) / "states")
        runs.append(from_config_dict(settings))
    return runs


def _parsed(text: str) -> Any:
    """Returns a number, a truth value or None where the text is one, else the text."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text
