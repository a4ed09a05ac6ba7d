"""Uploads of folders to the hub, by huggingface_hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

import huggingface_hub

from smart_jax.publishing.card import CARD, merge_cards

LEFT_OUT = ("*.tmp", ".*", "*/.*")
_REFUSED = (401, 403)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Uploads a folder to a repository of the hub, which is made if it is not there.

    Files that are there and not in the folder stay. A card that was edited there keeps its text, see `write_card`.

    Args:
      folder: of an adapter or a model.
      repo_id: "owner/name", or "name" for your own.
      private: whether a repository that is made can be seen by you alone; None = as your account has it.
      revision: branch, made if it is not there; None = the main branch.
      token: that may write; None = that of `hf auth login`, or the variable HF_TOKEN.
      commit_message: None = "Upload NAME with smart_jax".

    Returns:
      Address of the commit.

    Raises:
      FileNotFoundError: there is no such folder.
      PermissionError: the hub does not let this token write there.
      ConnectionError: the hub is offline (HF_HUB_OFFLINE).
      ValueError: repo_id is no name of a repository.

    Example:
      >>> push_folder("no/such/folder", "me/adapter")
      Traceback (most recent call last):
      FileNotFoundError: there is no folder 'no/such/folder' to upload
    """
    from huggingface_hub import errors  # an HTTP client is imported with them

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}' to upload")
    hub = huggingface_hub.HfApi(token=token, library_name="smart_jax")
    try:
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            commit = hub.upload_folder(
                repo_id=repo_id,
                folder_path=_with_card(folder, _card_there(hub, repo_id, revision), Path(scratch)),
                revision=revision,
                commit_message=commit_message or f"Upload {repo_id.rpartition('/')[2]} with smart_jax",
                ignore_patterns=list(LEFT_OUT),
            )
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"'{repo_id}' cannot be uploaded, since HF_HUB_OFFLINE is set: unset it, and try again"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response is None or error.response.status_code not in _REFUSED:
            raise
        raise PermissionError(
            f"the hub does not let you write to '{repo_id}': log in with a token that may write (hf auth login), or "
            f"pass token=; the hub says: {error}"
        ) from error
    return str(commit.commit_url)


def _card_there(hub: huggingface_hub.HfApi, repo_id: str, revision: str | None) -> str | None:
    """Returns the text of the repository's card; None = it has none."""
    from huggingface_hub import errors

    try:
        return Path(hub.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    except errors.EntryNotFoundError:
        return None


def _with_card(folder: Path, there: str | None, scratch: Path) -> Path:
    """Returns the folder or, where the repository's card keeps its text, one of links to its files with that card."""
    if there is None or not (folder / CARD).is_file():
        return folder
    for file in folder.rglob("*"):
        if file.is_file():
            link = scratch / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    new = (folder / CARD).read_text(encoding="utf-8")
    (scratch / CARD).unlink()
    (scratch / CARD).write_text(merge_cards(there, new), encoding="utf-8")
    return scratch
