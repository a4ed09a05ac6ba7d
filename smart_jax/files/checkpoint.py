"""A checkpoint's files: a folder, the base model that stands in for what it lacks, and a PEFT adapter in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from smart_jax.files.checked_values import shown
from smart_jax.files.json_file import read_json

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
SUBFOLDER = "adapters"
# Keys by which the config asks for more than LoRA and DoRA, each with another merge or none.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
# Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights before training: what is merged belongs to those.
_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The files of a model; `open_checkpoint` finds them.

    Attributes:
      folder: in the layout of Hugging Face or sentence-transformers.
      base: folder of the model that `folder` adapts, whose files stand in for those that `folder` lacks; None =
        `folder` holds a whole model.

    Example:
      >>> from smart_jax.files import open_checkpoint
      >>> checkpoint = open_checkpoint("tiny")
      >>> checkpoint.path("config.json").is_file(), checkpoint.base
      (True, None)
    """

    folder: Path
    base: Path | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint | str | Path) -> Checkpoint:
        """Returns a checkpoint as it is; of a folder, the one that the folder holds alone."""
        return checkpoint if isinstance(checkpoint, Checkpoint) else cls(Path(checkpoint))

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folder and, if there is one, its base."""
        return (self.folder,) if self.base is None else (self.folder, self.base)

    def having(self, *names: str) -> Path:
        """Returns the base if it alone has one of the files, and otherwise the folder."""
        return next((place for place in self.folders if any((place / name).exists() for name in names)), self.folder)

    def path(self, name: str) -> Path:
        """Returns where a file is, or would be."""
        return self.having(name) / name

    @property
    def weights(self) -> Path:
        """Folder of the weights, into which an adapter is merged."""
        return self.folder if self.base is None else self.base

    @property
    def adapter(self) -> Path | None:
        """Folder of the PEFT adapter, see `find_adapter`; None = there is none."""
        return find_adapter(self.folder)


def find_adapter(folder: str | Path) -> Path | None:
    """Returns where a folder has a PEFT adapter: the folder itself or its adapters/; None = it has none.

    Raises:
      ValueError: both hold one.

    Example:
      >>> from smart_jax.files import resolve
      >>> find_adapter(resolve("tiny")) is None
      True
    """
    places = [place for place in (Path(folder), Path(folder) / SUBFOLDER) if (place / CONFIG_FILE).is_file()]
    if len(places) > 1:
        raise ValueError(f"{folder} and its {SUBFOLDER}/ both hold an {CONFIG_FILE}: remove the one that is not wanted")
    return places[0] if places else None


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """Reads adapter_config.json.

    Raises:
      ValueError: it is not JSON, or not of a LoRA or DoRA that is merged here.

    Example:
      >>> import json, pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
      ...     read_adapter_config(folder)["r"]
      8
    """
    path = Path(folder) / CONFIG_FILE
    config = read_json(path, remedy="fetch the adapter again")
    if (kind := config.get("peft_type")) != "LORA":
        raise ValueError(
            f"{path}: peft_type {shown(kind)} is not supported, only 'LORA': merge the adapter with peft first"
        )
    if unsupported := [key for key in _UNSUPPORTED if config.get(key)]:
        raise ValueError(f"{path}: {', '.join(unsupported)} is not supported: merge the adapter with peft first")
    if (init := config.get("init_lora_weights", True)) not in _INITS:
        raise ValueError(
            f"{path}: init_lora_weights {shown(init)} changes the base weights: convert the adapter to a LoRA with "
            "peft (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return config
