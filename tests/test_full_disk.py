"""A disk that is full: what is said, and what is left. The kernel's own error where it can be had."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_checkpoint import IDENTITY, assert_equal, make_state, save, zeros_like
from tests.training import make_config, repeatable
from train.checkpoints import Checkpoints
from train.monitor import MetricsLog, read_metrics
from train.posttrain import train
from train.run_directory import UnwrittenError, hold_run, open_run

# What a full disk does not take stays in a file's buffer, and Python says so where it drops the file.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")


@pytest.fixture(autouse=True)
def dropped():
    """Drops the files of a test before the next one begins."""
    yield
    gc.collect()


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives a file system of so many KiB, or makes it as large; as root on Linux only."""
    folder = tmp_path / "disk"

    def mount(size: int) -> Path:
        options = f"{'remount,' if folder.is_mount() else ''}size={size}k"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def used(folder: Path) -> int:
    """KiB."""
    return int(subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True).stdout.split()[0])


def assert_whole(folder: Path, steps: list[int]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [str(step) for step in steps]
    checkpoints, (params, train_state) = Checkpoints(folder, identity=IDENTITY), make_state()
    assert checkpoints.all_steps() == steps
    for step in steps:
        found = checkpoints.restore(step, params=zeros_like(params), train_state=zeros_like(train_state))
        assert_equal(found.params, make_state(step)[0])


# What tensorstore and orbax leave behind when they cannot write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_checkpoint_on_a_full_file_system(small_disk, share):
    """Room for one and a part of the next, which fails early or late; with more room it is written.

    Two of the same arrays differ in size by a tenth: orbax writes them side by side, into what files there are."""
    disk = small_disk(8192)
    folder = disk / "checkpoints"
    checkpoints = Checkpoints(folder, identity=IDENTITY)
    save(checkpoints, 1)
    size = used(folder)
    small_disk(int(size * (1 + share)))
    message = (
        rf"checkpoint of step 2 cannot be written to {folder} \(.*No space left on device.*\[1\] are whole.*make room"
    )
    with pytest.raises(UnwrittenError, match=message):
        save(checkpoints, 2)
    assert_whole(folder, [1])
    small_disk(8192)
    save(checkpoints, 2)  # of the same process, or of a resumed run
    assert_whole(folder, [1, 2])


@pytest.mark.parametrize("before", [[], [1]])
def test_a_checkpoint_that_fails_on_any_disk(tmp_path, monkeypatch, before):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    for step in before:
        save(checkpoints, step)

    def failing(step, **_):
        (tmp_path / f"{step}.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", failing)
        with pytest.raises(UnwrittenError, match="are whole" if before else "there is none yet"):
            save(checkpoints, 2)
    assert_whole(tmp_path, before)
    save(checkpoints, 2)
    assert_whole(tmp_path, [*before, 2])


full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@full_device
def test_the_log_on_a_full_device(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 0.5})
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"{tmp_path} cannot be written \(No space left .*resume the run") as caught:
        log.write(2, {"loss": 0.25})
    assert caught.value.errno == errno.ENOSPC
    log.close()
    (tmp_path / "kept").replace(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_the_log_on_a_full_file_system(small_disk):
    """A record cut in the middle, and an event that does not fit; the run's files can be taken up again."""
    disk = small_disk(256)
    log = MetricsLog(disk)
    log.write(1, {"loss": 0.5})
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\): make room"):
        for step in range(2, 10_000):
            log.write(step, {f"metric {i}": 0.1 for i in range(50)})
    log.close()  # would hide the error if it raised its own
    before = (disk / "metrics.jsonl").read_bytes()
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written"):
        MetricsLog(disk, last_step=10_000)
    assert (disk / "metrics.jsonl").read_bytes() == before and not list(disk.glob("*.part"))
    small_disk(1024)
    log = MetricsLog(disk, last_step=1)
    log.write(2, {"loss": 0.25})
    log.close()
    assert read_metrics(disk / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_run_that_can_not_start(small_disk):
    disk = small_disk(64)
    (disk / "other").write_bytes(b"x" * 60 * 1024)
    with pytest.raises(OSError, match=r"config\.json cannot be written"):
        open_run(disk / "run", {"long": "x" * 10_000}, resume=False, overwrite=False)


def test_a_disk_that_can_only_be_read(small_disk):
    """Its error is told on resuming, and not that of the clean-up after it."""
    run = small_disk(256) / "run"
    open_run(run, {"seed": 0}, resume=False, overwrite=False)
    MetricsLog(run).close()
    (run / "metrics.jsonl.part").touch()  # of a run that was killed
    subprocess.run(["mount", "-o", "remount,ro", str(run.parent)], check=True)
    with pytest.raises(UnwrittenError, match=r"metrics\.jsonl cannot be written \(Read-only file system\)"):
        MetricsLog(run, last_step=1)
    with pytest.raises(UnwrittenError, match=r"run\.lock cannot be written \(Read-only file system\)"), hold_run(run):
        pass


def test_a_run_directory_that_is_deleted(tmp_path):
    """Nothing is whole any longer."""
    run = tmp_path / "run"
    checkpoints, log = Checkpoints(run / "checkpoints", identity=IDENTITY), MetricsLog(run)
    save(checkpoints, 1)
    shutil.rmtree(run)
    with pytest.raises(UnwrittenError, match=f"step 2 cannot be written: {run} is gone.*bring it back"):
        save(checkpoints, 2)
    with pytest.raises(UnwrittenError, match=f"{run} is gone"):
        log.write(2, {"loss": 0.5})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_goes_on_when_there_is_room_again(small_disk, inputs, tmp_path):
    settings = {"steps": 6, "trainable": "lora", "lora__r": 4}
    train(make_config(inputs, tmp_path / "whole", **settings))
    size = used(tmp_path / "whole" / "checkpoints" / "6")  # two are kept, and an older one may be there for a moment
    run = small_disk(size * 2 + size // 2) / "run"
    # Two fit, and not always beside what orbax needs while it writes the second.
    with pytest.raises(OSError, match=r"checkpoint of step [46] cannot be written to .*\[2(, 4)?\] are whole"):
        train(make_config(inputs, run, **settings))
    small_disk(1 << 20)
    train(make_config(inputs, run, **settings, resume=True))
    files = [folder / "lora" / "adapter_model.safetensors" for folder in (tmp_path / "whole", run)]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [repeatable(read_metrics(folder / "metrics.jsonl")) for folder in (tmp_path / "whole", run)]
    assert records[0] == records[1]

    shutil.rmtree(run / "lora")
    shutil.rmtree(run / "model")
    small_disk(used(run) + 16)
    with pytest.raises(OSError, match=r"cannot be written to .* make room .* only this is left to do"):
        train(make_config(inputs, run, **settings, resume=True))
