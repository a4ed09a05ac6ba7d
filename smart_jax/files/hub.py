"""Where a checkpoint's files are: a local folder, a Hugging Face hub id, or the embedded default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from smart_jax.files.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    find_adapter,
    read_adapter_config,
)

EMBEDDED = ("tiny",)
# Weights in safetensors, JSON and tokenizer text: never a pickle, never a repository's code.
# A star goes into subfolders, too (1_Pooling/config.json, adapters/*), where trainers and exporters leave what is not.
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
LEFT_OUT = ("checkpoint-*/*", "onnx/*", "openvino/*", "original/*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_checkpoint(name_or_path: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint's folder and, where that holds a PEFT adapter only, its base model's; downloads them once.

    Args:
      name_or_path: what `resolve` takes.
      revision: branch, tag or commit of a hub repository.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: as `resolve` and `resolve_base`.

    Example:
      >>> open_checkpoint("tiny").folder.name
      'tiny'
    """
    folder = resolve(name_or_path, revision=revision)
    return Checkpoint(folder, resolve_base(folder))


def resolve(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Returns the folder of a checkpoint; a hub id is downloaded once (HF_HOME, HF_HUB_OFFLINE, ... are honoured).

    Args:
      name_or_path: a local folder, a hub id, or "tiny" (the embedded model).
      revision: branch, tag or commit of a hub repository.

    Raises:
      FileNotFoundError: there is no such folder, hub repository or revision.
      ConnectionError: a hub id is not in the local cache, and the hub is offline or out of reach.

    Example:
      >>> (resolve("tiny") / "config.json").is_file()
      True
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
    return download(name, revision=revision, patterns=FILES, ignored=LEFT_OUT)


def download(
    repository: str,
    *,
    kind: Literal["model", "dataset"] = "model",
    revision: str | None = None,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
    remedy: str | None = None,
) -> Path:
    """Downloads files of a hub repository once; HF_HOME, HF_HUB_OFFLINE, ... are honoured.

    Args:
      repository: its id, "owner/name".
      kind: what it holds.
      revision: branch, tag or commit; None = the main branch.
      patterns: of the files that are wanted, such as "*.json"; a star goes into folders, too.
      ignored: of those among them that are not.
      remedy: what to do where the hub is out of reach, for the message; None = go online, or pass a local folder.

    Returns:
      The folder in the hub's cache.

    Raises:
      FileNotFoundError: there is no such repository or revision.
      ConnectionError: it is not in the local cache, and the hub is offline or out of reach.

    Example:
      >>> from unittest.mock import patch
      >>> with patch("huggingface_hub.snapshot_download", return_value="snapshots/1f2e"):  # instead of the hub
      ...     download("owner/pages", kind="dataset", patterns=["*.parquet"]).name
      '1f2e'
    """
    what, flag = ("data set ", "--repo-type dataset ") if kind == "dataset" else ("", "")
    options: dict[str, Any] = {"repo_type": kind} if kind != "model" else {}
    options |= {"ignore_patterns": list(ignored)} if ignored else {}
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns), **options)
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"the hub has no {what}'{repository}'" + (f" at revision '{revision}'" if revision else "") + ", and no "
            "such folder exists here: check the name (a private repository needs `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        usual = (
            f"go online once, run `hf download {flag}{repository}` where there is a connection, or pass the path of a "
            "local folder"
        )
        raise ConnectionError(
            f"{what}'{repository}' is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is "
            f"set): {remedy or usual}"
        ) from error


def resolve_base(folder: Path) -> Path | None:
    """Returns the folder of the base model of a PEFT adapter that comes without weights; None = the folder has weights.

    `base_model_name_or_path` of adapter_config.json is a folder, absolute or as seen from the adapter's, or what
    `resolve` takes.

    Raises:
      FileNotFoundError, ConnectionError: the base cannot be had.
      ValueError: adapter_config.json is corrupt, not supported or names no base, or the base is an adapter itself.

    Example:
      >>> resolve_base(resolve("tiny")) is None
      True
    """
    if any((folder / file).is_file() for file in (SINGLE_FILE, INDEX_FILE)) or not (folder / CONFIG_FILE).is_file():
        return None
    path, config = folder / CONFIG_FILE, read_adapter_config(folder)
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path} has no base_model_name_or_path: set it to the base model's folder or hub id")
    if (base := folder / name).is_dir():
        base = base.resolve()
    else:
        try:
            base = resolve(name, revision=config.get("revision"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: set base_model_name_or_path to the base model's folder or hub id: {error}"
            ) from error
    if find_adapter(base) is not None:
        raise ValueError(f"{path}: the base model {name} has an adapter itself: merge that into its weights first")
    return base
