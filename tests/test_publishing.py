"""Adapters and models on the hub, and their cards, against a stand-in of its API."""

from __future__ import annotations

import functools
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from flax import nnx

import smart_jax
from smart_jax.publishing import push_folder, read_figures, write_card
from smart_jax.publishing.card import MARK
from smart_jax.publishing.usage import torch_projection
from smart_jax.retrieval import export_reference, open_adapter
from tests.hub import TOKEN, serve_hub

# Of huggingface_hub's own upload of large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")
BASE = "Qwen/Qwen3-VL-Embedding-2B"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serve_hub(monkeypatch, str(tmp_path / "hub")) as server:
        yield server


@functools.cache
def adapter(width=192, **settings):
    """An adapter with random values everywhere."""
    made = smart_jax.Adapter(smart_jax.AdapterConfig(width, dim=16, **settings), rngs=nnx.Rngs(0))
    rng, state = np.random.default_rng(0), nnx.state(made)
    nnx.update(made, nnx.map_state(lambda _, x: x + rng.normal(size=x.shape).astype(np.float32) / 4, state))
    return made


def figure(mean):
    return {metric: {"mean": mean, "low": mean - 0.1, "high": mean + 0.125} for metric in ("ndcg@5", "hit@1")}


def results(folder, methods=("chance", "bm25", "pooled", "hybrid", "adapter-late", "adapter-hybrid"), model=BASE):
    """A results.json of two benchmarks and their average."""

    def benchmark(name, ranking="global"):
        rows = {method: figure(0.25 + i / 16) for i, method in enumerate(methods)}
        gain = {"row": methods[-1], "minus": methods[0], "metrics": figure(-0.03125)}
        return {"name": name, "queries": 9, "documents": 8, "ranking": ranking, "rows": rows, "differences": [gain]}

    benchmarks = [benchmark("ViDoRe_docvqa"), benchmark("My pages, 2"), benchmark("average", None)]
    stored = {"level": 0.95, "samples": 9, "metrics": ["ndcg@5", "hit@1"], "benchmarks": benchmarks}
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({**stored, "config": {"model": model}}))
    return folder / "results.json"


# --- the hub -----------------------------------------------------------------------------------------------------


@pytest.mark.compiles
def test_an_adapter_comes_back_as_it_was(hub, tmp_path):
    model = smart_jax.load("tiny", adapter=adapter())
    pages = ["Revenue by region", "A list of errors"]
    expected = smart_jax.score(model.encode_query(pages), model.encode_document(pages))
    url = model.adapter.push_to_hub("me/pages", results=results(tmp_path), license="apache-2.0", private=True)
    assert url.startswith(f"{hub.url}/me/pages/commit/") and hub.messages == ["Upload pages with smart_jax"]
    asked = hub.created["me/pages"]
    assert asked.get("private") is True or asked["visibility"] == "private"  # as older and newer clients say it
    assert set(hub.repositories["me/pages"]["main"]) == {"README.md", "adapter.json", "adapter.safetensors"}
    again = smart_jax.load("tiny", adapter="me/pages")
    assert again.adapter.fingerprint() == model.adapter.fingerprint()
    found = smart_jax.score(again.encode_query(pages), again.encode_document(pages))
    np.testing.assert_array_equal(found, expected)
    card = huggingface_hub.ModelCard.load("me/pages")
    assert (card.data.base_model, card.data.license, card.data.model_name) == (BASE, "apache-2.0", "me/pages")


@pytest.mark.slow
def test_a_model_comes_back_as_it_was(hub, tmp_path):
    """Has the settings that it was loaded with, and its adapter."""
    model = smart_jax.load("tiny", adapter=adapter(), settings={"max_length": 96, "default_instruction": "Read."})
    model.push_to_hub("me/reader", revision="v2", token=TOKEN, commit_message="First", license="mit")
    assert hub.messages == ["First"] and not hub.repositories["me/reader"]["main"]
    again = smart_jax.load("me/reader", revision="v2", adapter=open_adapter("me/reader", revision="v2"))
    assert again.preprocessor.settings == model.preprocessor.settings and again.fingerprint() == model.fingerprint()
    texts = ["Revenue by region", "A list of errors"]
    np.testing.assert_array_equal(again.encode_query(texts).tokens, model.encode_query(texts).tokens)
    card = hub.repositories["me/reader"]["v2"]["README.md"].decode()
    assert 'smart_jax.load("me/reader", adapter="me/reader")' in card and "AutoModel.from_pretrained" in card


def test_the_reference_s_adapter_in_a_repository(hub, tmp_path):
    made = adapter(32, layers=(-3, -1))
    (tmp_path / "run" / "best_adapter").mkdir(parents=True)
    export_reference(made, tmp_path / "run" / "best_adapter")
    push_folder(tmp_path / "run", "them/smart")
    assert open_adapter("them/smart").fingerprint() == made.fingerprint()
    assert open_adapter(tmp_path / "run" / "best_adapter").fingerprint() == made.fingerprint()


def test_a_card_that_was_edited_on_the_hub_keeps_its_text(hub, tmp_path):
    made = adapter(32)
    made.push_to_hub("me/pages", base_model=BASE)
    files = hub.repositories["me/pages"]["main"]
    edited = files["README.md"].decode().replace(MARK, "").replace("# pages", "# My pages")
    files["README.md"] = edited.replace("library_name", "language: de\nlibrary_name").encode()
    files["notes.txt"] = b"of my own"
    made.push_to_hub("me/pages", results=results(tmp_path), license="mit")
    files = hub.repositories["me/pages"]["main"]
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert "# My pages" in card.text and "## Results" not in card.text and files["notes.txt"] == b"of my own"
    assert (card.data.license, card.data.language, len(card.data.eval_results)) == ("mit", "de", 8)
    files["README.md"] = f"---\nlicense: mit\n---\n{MARK}\n# Old".encode()
    made.push_to_hub("me/pages", base_model=BASE)
    assert "# Old" not in hub.repositories["me/pages"]["main"]["README.md"].decode()


def test_what_is_said_where_it_cannot_be_uploaded(hub, tmp_path, monkeypatch):
    made = adapter(32)
    with pytest.raises(PermissionError, match=r"does not let you write to 'me/pages': .*hf auth login.*pass token="):
        made.push_to_hub("me/pages", token="hf_other")
    with pytest.raises(ValueError, match="Repo id must"):
        made.push_to_hub("me/pages/adapter")
    with pytest.raises(FileNotFoundError, match="the hub has no 'me/pages'"):
        open_adapter("me/pages")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        made.push_to_hub("me/pages")


# --- cards -------------------------------------------------------------------------------------------------------


def test_a_card_has_the_figures_of_an_evaluation(tmp_path):
    adapter(32, layers=(-2, -1)).save(tmp_path / "adapter")
    path = write_card(
        tmp_path / "adapter",
        results=results(tmp_path / "results"),
        license="apache-2.0",
        datasets=["vidore/colpali_train_set"],
        repo_id="me/pages",
    )
    assert path == tmp_path / "adapter" / "README.md"
    card = huggingface_hub.ModelCard.load(path)
    facts = card.data.to_dict()
    assert (facts["base_model"], facts["license"], facts["datasets"]) == (
        BASE,
        "apache-2.0",
        ["vidore/colpali_train_set"],
    )
    assert facts["library_name"] == "smart_jax" and facts["pipeline_tag"] == "visual-document-retrieval"
    (index,) = facts["model-index"]
    assert index["name"] == "me/pages"
    first, second = index["results"]
    assert (first["dataset"], second["dataset"]["type"]) == (
        {"name": "ViDoRe_docvqa", "type": "vidore_docvqa"},
        "my-pages-2",
    )
    assert len(first["metrics"]) == 4  # of the methods with an adapter, not of what the base does
    assert first["metrics"][0] == {
        "type": "ndcg_at_5",
        "name": "nDCG@5, adapter-late",
        "value": 0.5,
        "args": {"level": 0.95, "interval": [0.4, 0.625]},
    }
    assert "| adapter-late | .500 [.400, .625] | .500 [.400, .625] |" in card.text
    assert "| adapter-hybrid − chance | -.031 [-.131, .094] |" in card.text
    assert card.text.count("| bm25 |") == 3 and "### average" in card.text and "95% intervals" in card.text
    assert f'smart_jax.load("{BASE}", adapter="me/pages")' in card.text


def test_a_card_without_figures(tmp_path):
    adapter(32).save(tmp_path / "pages")
    card = huggingface_hub.ModelCard.load(write_card(tmp_path / "pages"))
    assert "## Results" not in card.text and card.data.eval_results is None and "base_model" not in card.data.to_dict()
    assert "# pages" in card.text
    evaluated = results(tmp_path / "results", ["adapter-late"], model="tiny")  # which is on no hub
    card = huggingface_hub.ModelCard.load(write_card(tmp_path / "pages", results=evaluated, repo_id="me/pages"))
    assert 'smart_jax.load("tiny", adapter="me/pages")' in card.text and "base_model" not in card.data.to_dict()


def test_a_card_of_a_peft_adapter_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": BASE}))
    evaluated = results(tmp_path / "results", ["pooled", "late"], model=str(tmp_path))
    card = huggingface_hub.ModelCard.load(write_card(tmp_path, results=evaluated, repo_id="me/lora"))
    assert (card.data.base_model, card.data.library_name, len(card.data.eval_results)) == (BASE, "peft", 8)
    assert f'PeftModel.from_pretrained(AutoModel.from_pretrained("{BASE}"), "me/lora")' in card.text


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither an adapter .* nor a model"):
        write_card(tmp_path)
    adapter(32).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file '.*nowhere': give a folder that python -m eval.run wrote"):
        write_card(tmp_path, results=tmp_path / "nowhere")
    path = results(tmp_path / "results", ["bm25", "pooled"])
    with pytest.raises(ValueError, match=r"of this adapter, only of bm25, pooled: .*--config.adapter=FOLDER"):
        write_card(tmp_path, results=path)
    stored = json.loads(path.read_text())
    for broken in ({}, stored | {"benchmarks": [{"name": "pages"}]}, stored | {"benchmarks": 3}):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"results.json' is not a results.json of python -m eval.run"):
            read_figures(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "mlp", "mlp_dim": 24, "layers": (-2,)},
        {"kind": "self_attention", "heads": 4, "blocks": 2, "layers": (-2, -1)},
    ],
    ids=lambda settings: settings["kind"],
)
def test_the_code_of_a_card_computes_the_adapter_in_torch(tmp_path, monkeypatch, settings):
    made = adapter(32, **settings)
    made.save(tmp_path)
    code = torch_projection(json.loads((tmp_path / "adapter.json").read_text()), "me/pages")
    assert code.strip() in write_card(tmp_path, repo_id="me/pages").read_text()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(tmp_path / file))
    scope: dict = {}
    exec(code, scope)
    states = np.random.default_rng(1).normal(size=(4, 1, 7, 32)).astype(np.float32)  # of 3 blocks
    layers = [layer % 4 for layer in made.config.layers]
    found = scope["token_vectors"](torch.from_numpy(states))
    expected = np.asarray(made(np.moveaxis(states[layers, 0], 0, 1)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    score = scope["late_score"](found[:3], found)
    np.testing.assert_allclose(score, (expected[:3] @ expected.T).max(axis=1).mean(), atol=1e-5)
