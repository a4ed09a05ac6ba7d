"""Where a checkpoint's files are: a local folder, a Hugging Face hub id, or the embedded default."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

EMBEDDED = ("tiny",)
# Weights in safetensors, JSON and tokenizer text: never a pickle, never a repository's code.
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Folder with the checkpoint's files; a hub id is downloaded once (HF_HOME, HF_HUB_OFFLINE, ... are honoured).

    Raises:
      FileNotFoundError: no such folder, hub repository or revision.
      ConnectionError: a hub id that is not in the local cache while the hub is offline or out of reach.
    """
    if (folder := Path(name_or_path)).is_dir():
        return folder
    name = str(name_or_path)
    if name in EMBEDDED:
        return Path(str(resources.files("smart_jax") / "assets" / name))
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"'{name}' is not a folder: give a checkpoint folder, a hub id such as 'Qwen/Qwen3-VL-Embedding-2B', "
            f"or {' or '.join(map(repr, EMBEDDED))}"
        )
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"the hub has no '{name}'" + (f" at revision '{revision}'" if revision else "") + ", and no such folder "
            "exists here: check the name (a private repository needs `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"'{name}' is not in the local cache and the hub can not be reached (or HF_HUB_OFFLINE is set): go online "
            f"once, run `hf download {name}` where there is a connection, or pass the path of a local folder"
        ) from error
