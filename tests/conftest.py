"""Before jax is imported: 8 virtual CPU devices for every test, and threads that do not spin beside torch's."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.backbone import write_checkpoint


def pytest_addoption(parser):
    parser.addoption(
        "--ragged-cases", type=int, default=2000, help="drawn for MaxSim and for search; 20000 is thorough"
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a small random checkpoint; read only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
