"""No traced value outlives its trace, under `jax.checking_leaks`; and no program outlives its use for ever."""

import gc

import jax
import jax.extend
import numpy as np
import pytest

import smart_jax
from smart_jax import Embeddings
from smart_jax.retrieval import host_scores
from smart_jax.retrieval.resident_search import score_program, search_program
from tests import soak
from tests.processes import run_python
from tests.training import make_config, write_inputs
from train.data import Batcher, Examples, open_split
from train.optimizer import make_optimizer, make_schedule
from train.setup import load_encoder, make_objective
from train.step import init_state, make_train_step


@pytest.fixture
def leaks_are_errors():
    with jax.checking_leaks():
        yield
    jax.clear_caches()  # programs traced under the check are no others' to reuse


STRICT = {
    "jax_debug_nans": lambda: jax.debug_nans(True),
    "jax_numpy_rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "jax_transfer_guard": lambda: jax.transfer_guard("disallow"),
}


@pytest.fixture(params=STRICT)
def strict(request):
    """jax as it is where NaN, or a shape or a transfer that nobody asked for, is an error."""
    with STRICT[request.param]():
        yield
    jax.clear_caches()


@pytest.mark.compiles
@pytest.mark.usefixtures("strict")
def test_public_functions_where_jax_is_strict(checkpoint, monkeypatch):
    """Encoding, scores and search by each way, MaxSim with its gradient, of items without tokens, too."""
    model = smart_jax.load(checkpoint)
    queries, pages = model.encode_query(["red"]), model.encode_document(["a red page", "a blue one"])
    expected = smart_jax.score(queries, pages)
    monkeypatch.setattr(host_scores, "PAIRS", 0)
    np.testing.assert_allclose(smart_jax.score(queries, pages), expected, atol=1e-5)
    for documents in (pages, pages.astype(np.int8), smart_jax.to_device(pages)):
        assert smart_jax.search(queries, documents, k=1)[1].tolist() == [[int(expected.argmax())]]
    rng = np.random.default_rng(0)
    q, d = (jax.device_put(rng.normal(size=shape).astype(np.float32)) for shape in ((2, 3, 8), (2, 5, 8)))
    mask = jax.device_put(np.array([[True] * 5, [False] * 5]))
    total = lambda q, d: smart_jax.maxsim(q, d, d_mask=mask).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(q, d)
    assert all(np.isfinite(jax.device_get(x)).all() for x in gradients)
    assert np.isfinite(jax.device_get(smart_jax.maxsim_pairs(q, d[:, None]))).all()


@pytest.mark.usefixtures("leaks_are_errors")
def test_encoding_and_scoring(checkpoint):
    model = smart_jax.load(checkpoint)
    queries, pages = model.encode_query(["red"]), model.encode_document(["a red page", "a blue one"])
    assert smart_jax.score(queries, pages).shape == (1, 2)
    assert np.asarray(smart_jax.search(queries, pages, k=1)[1]).shape == (1, 1)


@pytest.mark.usefixtures("leaks_are_errors")
def test_a_training_step(tmp_path):
    config = make_config(write_inputs(tmp_path), tmp_path / "run")
    mesh = smart_jax.make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=2)
    optimizer, schedule = make_optimizer(config.optimizer, steps=2), make_schedule(config.optimizer, steps=2)
    state = init_state(params, optimizer, mesh)
    batch = Batcher(encoder.preprocessor, config.data, mesh)(next(Examples(open_split(tmp_path / "data", "pages"), 8)))
    state, metrics = make_train_step(objective, optimizer, schedule, state)(state, frozen, batch)
    assert np.isfinite(metrics["loss"])


def traces():
    """Returns how many traced functions there are in the process."""
    gc.collect()
    return sum(issubclass(type(x), jax.extend.core.Jaxpr) for x in gc.get_objects())  # x.__class__ may warn


@pytest.mark.compiles
def test_a_search_that_is_forgotten_leaves_no_traces():
    """jax.numpy would keep some for each new width, of which this one is no other test's."""
    before, tokens = traces(), np.eye(5, 349, dtype=np.float32)
    documents = Embeddings(tokens, tokens, np.arange(6))
    resident = smart_jax.to_device(documents)
    assert smart_jax.search(documents, resident, k=1)[1].tolist() == [[0], [1], [2], [3], [4]]
    np.testing.assert_allclose(smart_jax.score(documents, resident), 2 * np.eye(5), atol=1e-6)
    for program in (search_program(resident.mesh), score_program(resident.mesh)):
        assert program.programs()
        program.clear_cache()
    assert traces() <= before


@pytest.mark.slow
def test_memory_and_files_do_not_grow_with_the_shapes_asked_for():
    """After the first 200 calls; see `tests.soak`."""
    done = run_python("-m", "tests.soak", "--calls", "240")
    assert done.returncode == 0, done.stderr
    calls, memory, files = np.array([line.split() for line in done.stdout.splitlines()], int).T
    assert len(calls) == 10 and calls[-1] == 240
    before = calls <= 200
    assert memory[~before].max() <= 1.1 * memory[before].max() and len(set(files)) == 1, done.stdout


def test_a_soak_that_rises_fails():
    rows = [(100, 300.0, 7), (200, 400.0, 7), (1000, 440.0, 7), (2000, 459.0, 7)]
    assert soak.failures(rows) == []
    risen = [*rows[:-1], (2000, 470.0, 8)]
    assert soak.failures(risen) == [
        "memory: 470 MiB after 2000 calls, 400 after 200",
        "memory: 470 MiB after 2000 calls, 440 after 1000",
        "open files: 7 to 8",
    ]


FORKED = """
import os, signal, sys
import numpy as np
import smart_jax
from smart_jax import Embeddings
ones = np.ones((4, 8), np.float32)
documents = smart_jax.to_device(Embeddings(ones, ones, np.arange(5)))
queries = Embeddings(ones[:1], ones[:1], np.arange(2))
smart_jax.search(queries, documents, k=1)
if not os.fork():
    signal.alarm(60)  # where it hangs
    try:
        smart_jax.search(queries, documents, k=1)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_process_that_was_forked_after_use_is_told_so():
    done = run_python("-W", "ignore", "-c", FORKED)
    assert "forked after jax had computed" in done.stdout and "spawn" in done.stdout, done
