"""Checkpoints: what is saved comes back bit for bit; damage, strangers and kills are told apart."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import smart_jax
from smart_jax.runtime import compilation_cache
from smart_jax.runtime.mesh import make_mesh
from tests.processes import run_python
from train import checkpoints as checkpoint
from train.checkpoints import Checkpoints, DamagedCheckpointError, fingerprint, weights_fingerprint

IDENTITY = {"architecture": "abc", "adapter": {"dim": 3, "layers": (-1,)}}


def make_state(seed: int = 0):
    rng = np.random.default_rng(seed)
    params = {
        "adapter.proj.kernel": jnp.asarray(rng.standard_normal((40, 30)), jnp.float32),
        "adapter.norm.scale": jnp.asarray(rng.standard_normal(30), jnp.bfloat16),
        "log_temperature.late": jnp.float32(-3.5),
    }
    optimizer = optax.adamw(1e-3)
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(params, opt_state, params)
    return params, {"step": jnp.int32(seed), "optimizer": opt_state}


def save(checkpoints: Checkpoints, step: int, **metrics: float) -> None:
    params, train_state = make_state(step)
    checkpoints.save(step, params=params, train_state=train_state, data={"position": step}, metrics=metrics or None)


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_round_trip_is_bit_identical(tmp_path):
    save(Checkpoints(tmp_path, identity=IDENTITY), 7)
    params, train_state = make_state(7)
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    found = checkpoints.restore(params=zeros_like(params), train_state=zeros_like(train_state))
    assert (found.step, found.data) == (7, {"position": 7})
    assert_equal(found.params, params)
    assert_equal(found.train_state, train_state)


@pytest.mark.compiles
def test_states_whose_fields_are_in_any_order(tmp_path):
    """Optax's wrappers do not name theirs alphabetically."""
    params, _ = make_state(3)
    steps = optax.MultiSteps(optax.adamw(optax.constant_schedule(1e-3)), 2)
    optimizer = optax.apply_if_finite(steps.gradient_transformation(), 3)
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    names = ["/".join(map(str, path)) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert names != sorted(names)
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    checkpoints.save(1, params=params, train_state=state, data={})
    found = checkpoints.restore(params=zeros_like(params), train_state=zeros_like(state))
    assert_equal(found.train_state, state)


def test_arrays_that_are_split_over_processes_have_checksums_too(tmp_path, monkeypatch):
    params, train_state = make_state(4)
    tree = {"params": zeros_like(params), "train_state": zeros_like(train_state)}
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_seen_whole", lambda x: x.ndim < 2)
        checkpoints.save(4, params=params, train_state=train_state, data={})
    assert_equal(checkpoints.restore(**tree).params, params)
    damaged = checkpoint._checksums

    def sums(leaves, like=None):  # one bit is wrong
        kernel = leaves["adapter.proj.kernel"].at[17, 5].multiply(-1)
        return damaged(dict(leaves) | {"adapter.proj.kernel": kernel}, like)

    monkeypatch.setattr(checkpoint, "_checksums", sums)
    with pytest.raises(DamagedCheckpointError, match=r"checksum of adapter\.proj\.kernel differs"):
        checkpoints.restore_params(params=tree["params"])
    with monkeypatch.context() as patched:  # one process wrote, several read: nothing to compare there
        patched.setattr(checkpoint, "_seen_whole", lambda x: False)
        assert set(damaged(params, like=dict.fromkeys(params, 1)).values()) == {None}


def test_parameters_can_be_read_alone_and_placed_on_a_mesh(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    save(checkpoints, 1)
    params, _ = make_state(1)
    sharding = NamedSharding(make_mesh(), PartitionSpec("data"))
    like = params | {"adapter.proj.kernel": jax.device_put(jnp.zeros((40, 30)), sharding)}
    found = checkpoints.restore_params(params=like)
    assert_equal(found, params)
    assert found["adapter.proj.kernel"].sharding == sharding


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY, keep=2, best_metric="eval/ndcg")
    for step, value in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
        save(checkpoints, step, **{"eval/ndcg": value})
    save(checkpoints, 6, loss=9.0)  # a checkpoint without the metric is neither best nor an error
    assert checkpoints.all_steps() == [2, 5, 6]
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 2)
    again = Checkpoints(tmp_path, identity=IDENTITY, keep=2, best_metric="eval/ndcg")
    assert (again.latest_step(), again.best_step()) == (6, 2)


def test_the_best_may_be_the_smallest(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY, keep=1, best_metric="loss", best_mode="min")
    for step, value in enumerate([3.0, 1.0, 2.0], start=1):
        save(checkpoints, step, loss=value)
    assert checkpoints.all_steps() == [2, 3]
    assert checkpoints.best_step() == 2


def test_another_model_is_refused(tmp_path):
    save(Checkpoints(tmp_path, identity=IDENTITY), 1)
    params, train_state = make_state(1)
    other = Checkpoints(tmp_path, identity=IDENTITY | {"architecture": "xyz"})
    with pytest.raises(ValueError, match="of another model: architecture is 'abc' there and 'xyz' here"):
        other.restore(params=params, train_state=train_state)


def test_other_parameters_are_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    save(checkpoints, 1)
    params, train_state = make_state(1)
    with pytest.raises(ValueError, match=r"differ in the entries of params: log_temperature\.pooled"):
        checkpoints.restore(params=params | {"log_temperature.pooled": jnp.float32(0)}, train_state=train_state)


def test_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    assert checkpoints.latest_step() is None and checkpoints.best_step() is None
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        checkpoints.restore(params={}, train_state={})
    save(checkpoints, 3)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4; it has \[3\]"):
        checkpoints.restore(4, params={}, train_state={})


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        Checkpoints(tmp_path, identity={}, keep=0)
    with pytest.raises(ValueError, match="'min' or 'max'"):
        Checkpoints(tmp_path, identity={}, best_mode="lowest")


# orbax leaves coroutines behind when it cannot read a file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["halve", "empty", "delete", "flip"])
def test_damage_is_found_and_the_remedy_works(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    for step in (1, 2, 3):
        save(checkpoints, step)
    largest = max((p for p in (tmp_path / "3" / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if damage == "delete":
        largest.unlink()
    else:
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        largest.write_bytes({"halve": content[: len(content) // 2], "empty": b"", "flip": bytes(flipped)}[damage])
    params, train_state = make_state(0)
    reopened = Checkpoints(tmp_path, identity=IDENTITY)
    with pytest.raises(ValueError, match=r"step 3 is truncated or corrupt.*Delete the folder .*resumes from step 2"):
        reopened.restore(params=params, train_state=train_state)
    shutil.rmtree(tmp_path / "3")
    found = Checkpoints(tmp_path, identity=IDENTITY).restore(params=params, train_state=train_state)
    assert_equal(found.params, make_state(2)[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_ones_are_set_aside(tmp_path, caplog):
    folder, (params, train_state) = tmp_path / "checkpoints", make_state(0)
    checkpoints = Checkpoints(folder, identity=IDENTITY)
    for step in (1, 2, 3):
        save(checkpoints, step)
    for step in (2, 3):
        shutil.rmtree(folder / str(step) / "params")
    found = checkpoints.restore_newest(params=params, train_state=train_state)
    assert (found.step, found.data) == (1, {"position": 1}) and checkpoints.all_steps() == [1]
    assert_equal(found.params, make_state(1)[0])
    assert sorted(path.name for path in (tmp_path / "checkpoints-damaged").iterdir()) == ["2", "3"]
    assert "step 3 is truncated or corrupt" in caplog.text and "step 2 is truncated" in caplog.text
    save(checkpoints, 2)  # the run comes by again
    assert Checkpoints(folder, identity=IDENTITY).restore_newest(params=params, train_state=train_state).step == 2
    for step in (1, 2):
        shutil.rmtree(folder / str(step) / "train_state")
    with pytest.raises(DamagedCheckpointError, match=r"step 1 .*the run then starts again"):
        Checkpoints(folder, identity=IDENTITY).restore_newest(params=params, train_state=train_state)
    assert (folder / "1").is_dir()  # the last one stays for whoever can mend it
    with pytest.raises(ValueError, match="is of another model"):
        Checkpoints(folder, identity={"other": 1}).restore_newest(params=params, train_state=train_state)


def test_what_another_process_can_not_read_is_set_aside(tmp_path, caplog, monkeypatch):
    folder, (params, train_state) = tmp_path / "checkpoints", make_state(0)
    checkpoints = Checkpoints(folder, identity=IDENTITY)
    for step in (1, 2):
        save(checkpoints, step)
    others = iter([True, False])
    monkeypatch.setattr(checkpoint, "on_any", lambda flag: flag or next(others))
    assert checkpoints.restore_newest(params=params, train_state=train_state).step == 1
    assert "step 2 is truncated or corrupt: a part of it cannot be read" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints-damaged").iterdir()] == ["2"]


def test_wrong_values_of_the_right_shape_are_found(tmp_path):
    """A file that reads well but holds something else: only the checksums can tell."""
    for name in ("a", "b"):
        save(Checkpoints(tmp_path / name, identity=IDENTITY), 1 if name == "a" else 2)
    shutil.rmtree(tmp_path / "a" / "1" / "params")
    shutil.copytree(tmp_path / "b" / "2" / "params", tmp_path / "a" / "1" / "params")
    params, train_state = make_state(1)
    with pytest.raises(ValueError, match=r"checksum of adapter\.norm\.scale"):
        Checkpoints(tmp_path / "a", identity=IDENTITY).restore(params=params, train_state=train_state)


def test_reading_leaves_alone_what_another_writes(tmp_path):
    """The run that goes on removes what a killed run left; one that looks into the folder does not."""
    writer = Checkpoints(tmp_path, identity=IDENTITY)
    partial = tmp_path / "1.orbax-checkpoint-tmp"
    (partial / "params").mkdir(parents=True)
    assert Checkpoints(tmp_path, identity=IDENTITY).all_steps() == [] and (partial / "params").is_dir()
    save(writer, 2)
    assert not partial.exists() and Checkpoints(tmp_path, identity=IDENTITY).all_steps() == [2]


# Imports once and forks for each try, before jax has made any thread.
KILLED_WHILE_SAVING = """
import os, signal, sys, threading, traceback
from train.checkpoints import Checkpoints
from tests.test_checkpoint import IDENTITY, save

def save_and_die(folder, after):
    checkpoints = Checkpoints(folder, identity=IDENTITY)
    save(checkpoints, 1)
    count = 0
    def kill(event, args):
        nonlocal count
        if event in ("os.rename", "os.mkdir", "open") and folder in str(args[0]):
            count += 1
            if count == after:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill)
    save(checkpoints, 2)

for after in sys.argv[2:]:
    assert threading.active_count() == 1
    child = os.fork()
    if not child:
        try:
            save_and_die(f"{sys.argv[1]}/{after}", int(after))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def killed_while_saving(folder: Path, moments: Sequence[int]) -> list[bool]:
    """Saves step 1, a folder for each, and dies at that file operation of saving step 2; False if there were fewer."""
    done = run_python("-c", KILLED_WHILE_SAVING, str(folder), *map(str, moments))
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(moments) and set(codes) <= {0, -signal.SIGKILL}, done.stderr
    return [code != 0 for code in codes]


@pytest.mark.compiles
def test_killed_while_saving_leaves_the_earlier_checkpoint(tmp_path):
    assert killed_while_saving(tmp_path, (3, 12)) == [True, True]
    check_survivor(tmp_path / "3")
    check_survivor(tmp_path / "12")


@pytest.mark.slow
def test_killed_at_any_moment_of_saving(tmp_path):
    moments = range(1, 60, 4)
    killed = killed_while_saving(tmp_path, moments)
    assert killed[0] and sorted(killed, reverse=True) == killed  # no later one than there are operations
    for after in moments:
        check_survivor(tmp_path / str(after))


def check_survivor(folder: Path) -> None:
    checkpoints = Checkpoints(folder, identity=IDENTITY)
    params, train_state = make_state(0)
    found = checkpoints.restore(params=params, train_state=train_state)
    assert found.step in (1, 2)
    assert_equal(found.params, make_state(found.step)[0])
    save(checkpoints, 3)
    assert checkpoints.latest_step() == 3


def test_fingerprints(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        width: int
        layers: tuple[int, ...] = (1, 2)

    assert fingerprint(Config(3)) == fingerprint(Config(3)) != fingerprint(Config(4))
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = weights_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert weights_fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert weights_fingerprint(tmp_path) != first


@pytest.fixture
def compiled_in(tmp_path, monkeypatch):
    """Has jax keep no programs, and the user's caches be in a folder; jax's settings are afterwards those of before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compilation_cache.VARIABLE, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "smart_jax" / "xla"
    for name, value in before.items():
        jax.config.update(name, value)


def test_compilation_cache_is_switchable(tmp_path, monkeypatch, compiled_in):
    monkeypatch.setenv(compilation_cache.VARIABLE, "off")
    assert compilation_cache.enable() is None and jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(compilation_cache.VARIABLE, str(tmp_path / "mine"))
    assert compilation_cache.enable(tmp_path / "other") == tmp_path / "mine"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv(compilation_cache.VARIABLE)
    with monkeypatch.context() as read_only_home:
        read_only_home.setattr(os, "access", lambda *_: False)
        assert compilation_cache.enable() is None and jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert compilation_cache.enable() == tmp_path / "own"  # the user's own choice stays
    jax.config.update("jax_enable_compilation_cache", False)
    assert compilation_cache.enable() is None


def test_loading_a_model_keeps_compiled_programs(compiled_in):
    smart_jax.load("tiny")
    assert jax.config.jax_compilation_cache_dir == str(compiled_in)
