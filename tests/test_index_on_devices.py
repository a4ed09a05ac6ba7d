"""`Index.to_device`: the same hits as without devices, whatever is written meanwhile, and for several processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from smart_jax import Index, make_mesh
from smart_jax.index import on_devices
from tests.indexes import random_embeddings
from tests.processes import ROOT, environment
from tests.test_index_engines import facts_of

COUNT = 50
PROCESS = """
import json, sys
import jax
port, number, folder = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
from smart_jax import Index, make_mesh
from tests.indexes import random_embeddings
with Index(folder) as index:
    on_device, queries = index.to_device(make_mesh()), random_embeddings(2, seed=1)
    found = []
    for change in range(2):
        found += on_device.search(queries, 7) + on_device.search(queries, 7, where={"odd": True})
        if change == 0 and number == "0":
            index.delete([found[0][0].id])
            index.add_embeddings(queries, ["q0", "q1"])
        from smart_jax.runtime import wait_for_all
        wait_for_all("written")
    print(json.dumps([[[hit.id, hit.score] for hit in hits] for hits in found]))
"""


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "index", model="tiny") as opened:
        opened.add_embeddings(random_embeddings(COUNT), [f"d{i}" for i in range(COUNT)], facts_of(COUNT))
        yield opened


def check(on_device: Index, index: Index, **how) -> None:
    queries = random_embeddings(3, seed=1)
    for found, expected in zip(on_device.search(queries, 9, **how), index.search(queries, 9, **how), strict=True):
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-6)


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.compiles
def test_hits_are_those_without_devices(index, monkeypatch, devices):
    monkeypatch.setattr(on_devices, "PIECES", 2)
    on_device = index.to_device(make_mesh(devices=jax.devices()[:devices]))
    check(on_device, index)
    check(on_device, index, where={"odd": True, "number": {"lt": 20}}, pooled_weight=0.5)
    assert on_device.search(random_embeddings(1), where={"number": -1}) == [[]]
    for change in range(3):
        index.add_embeddings(random_embeddings(3, seed=2 + change), [f"new{change}{i}" for i in range(3)])
        on_device.delete([f"d{change}"])
        check(on_device, index)
    assert [len(pieces) for pieces in on_device._engine._pieces.values()] == [2]
    index.compact()
    check(on_device, index, late_weight=0)
    with pytest.raises(ValueError, match="every item is scored"):
        on_device.search(random_embeddings(1), candidates=5)
    index.delete(where={})
    check(on_device, index)


def test_an_index_in_qdrant_is_to_be_copied_first():
    with Index("qdrant://:memory:/papers", model="tiny") as index, pytest.raises(ValueError, match="copy_to"):
        index.to_device()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(index):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    queries = random_embeddings(2, seed=1)
    first = [index.search(queries, 7), index.search(queries, 7, where={"odd": True})]
    commands = [[sys.executable, "-c", PROCESS, port, str(i), str(index.folder)] for i in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=ROOT, env=environment(2), **pipes) for command in commands]
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), outputs
    expected = [hits for each in first for hits in each]
    for each in (index.search(queries, 7), index.search(queries, 7, where={"odd": True})):
        expected += each
    for output, _ in outputs:
        found = json.loads(output.strip().splitlines()[-1])
        assert [[name for name, _ in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
        scores = [score for hits in found for _, score in hits]
        np.testing.assert_allclose(scores, [hit.score for hits in expected for hit in hits], atol=1e-6)
