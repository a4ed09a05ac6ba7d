"""Before jax is imported: 8 virtual CPU devices for every test, quick compilation, and compiled programs that are kept.

The programs lie in build/tests/xla, from where the other workers, the children of tests and the next run read them;
`make clean`, or deleting the folder, starts afresh.
"""

import os

from tests.processes import COMPILED, xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that do not spin beside torch's
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

import importlib.util
import shutil

import hypothesis
import jaxtyping
import pytest

from tests.typecheck import check_annotations

check_annotations(["smart_jax", "train", "eval"])

# How many cases a property is tried on: `pytest --hypothesis-profile=thorough` takes many.
for name, cases in {"suite": 200, "thorough": 20_000}.items():
    hypothesis.settings.register_profile(name, max_examples=cases, deadline=None, database=None)
hypothesis.settings.load_profile("suite")

# Tests that LangChain writes for its components, which `make test-langchain` installs and runs.
collect_ignore = [] if importlib.util.find_spec("langchain_tests") else ["langchain"]
COMPILED_BYTES = 2 * 2**30  # after which the folder of compiled programs is emptied


def pytest_sessionstart(session):
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and sum(file.stat().st_size for file in COMPILED.glob("*")) > COMPILED_BYTES:
        shutil.rmtree(COMPILED)


@pytest.fixture
def unchecked():
    """Leaves annotations unchecked, for a test that passes what they rule out, to see what the library says of it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a small random checkpoint; read only."""
    from tests.backbone import write_checkpoint  # imports the library: not before its annotations are checked

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Folder with a small model in model/ and a data set in data/, see `write_inputs`; read only."""
    from tests.training import write_inputs  # which imports the trainer

    return write_inputs(tmp_path_factory.mktemp("inputs"))
