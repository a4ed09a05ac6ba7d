"""A copy of the log for Weights & Biases, if it is asked for: only then is `wandb` imported."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.monitor.tensorboard import Sample
from train.run_directory import WANDB_ID_FILE


def import_wandb(project: str) -> Any:
    """Raises ImportError: it is not installed; the message says how to."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError(
            f"log.wandb is '{project}', but wandb is not installed: pip install 'smart_jax[wandb]', or leave "
            "--config.log.wandb empty"
        ) from error


class WandbLog:
    """One run of a project; a resumed run goes on under the id that is kept in the run directory."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        self._wandb = import_wandb(project)
        file = folder / WANDB_ID_FILE
        if not file.is_file():
            file.write_text(secrets.token_hex(4) + "\n")
        self._run = self._wandb.init(
            project=project,
            id=file.read_text().strip(),
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        # wandb's own steps can not go back, as a run does that was cut off after a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        pictures = {s.name: self._wandb.Image(s.picture, caption=s.text) for s in samples if s.picture is not None}
        self._run.log({"step": step, **values, **pictures})

    def close(self) -> None:
        self._run.finish()
