"""docs/training.md: its commands are accepted, and no setting is missing from it."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
import typing
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import lora_visdoc
from train.config import TrainConfig, from_config_dict

PAGE = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`((?:\w+=\S+ )*tiny\b[^`\n]*)`", PAGE)


def keys(kind: type = TrainConfig, prefix: str = "") -> list[str]:
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        found += keys(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command, monkeypatch):
    words = shlex.split(command)
    at = words.index("tiny")
    environment = dict(word.split("=", 1) for word in words[:at])
    config = lora_visdoc.get_config(f"tiny,{environment.get('objective', 'hybrid')}")
    line = ["tiny", *(word for word in words[at + 1 :] if word != "&")]
    monkeypatch.setattr(sys, "argv", line)  # where ml_collections looks for a config's flags
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    assert values(line) == ["tiny"]  # nothing is left over
    from_config_dict(config)


def test_every_setting_is_there():
    assert len(COMMANDS) > 40
    missing = [
        key for key in keys() if not re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", PAGE.replace("config.", ""))
    ]
    assert missing == []
