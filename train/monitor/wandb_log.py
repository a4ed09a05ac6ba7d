"""Copy of the log for Weights & Biases, where it is asked for: only then is `wandb` imported."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.monitor.tensorboard import Sample
from train.run_directory import WANDB_ID_FILE


def import_wandb(project: str) -> Any:  # of a package that need not be there
    """Imports wandb.

    Args:
      project: for the message.

    Returns:
      The module.

    Raises:
      ImportError: it is not installed; the message says how to install it.

    Example:
      >>> from unittest.mock import MagicMock, patch
      >>> with patch.dict("sys.modules", wandb=MagicMock()):  # instead of the real one
      ...     run = import_wandb("smart").init(project="smart")
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError(
            f"log.wandb is '{project}', but wandb is not installed: pip install 'smart_jax[wandb]', or leave "
            "--config.log.wandb empty"
        ) from error


class WandbLog:
    """Run of a project; a resumed run goes on under the id that is kept in the run directory.

    Example:
      >>> import tempfile
      >>> from unittest.mock import MagicMock, patch
      >>> with patch.dict("sys.modules", wandb=MagicMock()):  # instead of the real one
      ...     log = WandbLog("smart", Path(tempfile.mkdtemp()), {"seed": 0})
      ...     log.write(1, {"loss": 0.5})
      ...     log.close()
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        """Starts the run, or goes on with it.

        Args:
          project: of Weights & Biases.
          folder: the run directory, whose name the run gets.
          config: settings that are shown with it.

        Raises:
          ImportError: wandb is not installed.
        """
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
        # wandb's own steps cannot go back, as a run does that was cut off after a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Logs the metrics of a step, and samples that have a picture."""
        pictures = {s.name: self._wandb.Image(s.picture, caption=s.text) for s in samples if s.picture is not None}
        self._run.log({"step": step, **values, **pictures})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
