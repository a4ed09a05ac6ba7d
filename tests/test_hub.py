"""Resolving names: folders, hub ids in the local cache, and what is said when neither is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from smart_jax.hub import resolve
from tests.backbone import write_backbone


def test_local_folder(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", Path("nowhere"), "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        resolve(name)


def test_hub_id_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="hf download someone/some-model"):
        resolve("someone/some-model")


def test_hub_id_in_the_cache(monkeypatch, tmp_path):
    """The layout that huggingface_hub keeps: refs/<revision> names the snapshot folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--someone--some-model", "0" * 40
    snapshot = write_backbone(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert resolve("someone/some-model") == snapshot
    with pytest.raises(ConnectionError):
        resolve("someone/some-model", revision="other")
