"""The host's work ahead of the device, with stand-ins for items and device: order, bounds, errors, interruption."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_jax.encoding import Look, Pipeline, run_ahead, shape_compiler
from smart_jax.encoding.window import Window


class Fake:
    """Items of given sizes, in bytes too, whose steps take random times; a log of what the device is asked for."""

    def __init__(self, sizes, rows, *, seed=None, bad=(), held=False):
        self.sizes, self.rows, self.bad, self.held = sizes, rows, set(bad), held
        self.random = None if seed is None else random.Random(seed)
        self.lock, self.alive, self.peak = threading.Lock(), 0, 0
        self.seen, self.log, self.threads = [], [], set()

    def pause(self):
        if self.random is not None:
            time.sleep(self.random.random() / 2000)

    def count(self, change):
        with self.lock:
            self.alive += change
            self.peak = max(self.peak, self.alive)

    def look(self, number):
        self.pause()
        return Look(number, (self.sizes[number], 1), held=self.sizes[number] if self.held else 0)

    def looked(self, look):
        self.seen.append(look.number)

    def planned(self, batches):
        self.plan = [[look.number for look in batch] for batch in batches]

    def bytes_of(self, looks):
        sizes = [look.size[0] for look in looks]
        return sum(sizes), self.rows * max(sizes)

    def read(self, look):
        self.pause()
        self.threads.add(threading.get_ident())
        if look.number in self.bad:
            raise ValueError(f"item {look.number} is bad")
        self.count(look.size[0])
        return look.number

    def collate(self, items):
        sizes = [self.sizes[number] for number in items]
        self.count(self.rows * max(sizes))
        self.count(-sum(sizes))
        return list(items)

    def dispatch(self, batch):
        self.log.append(("dispatch", batch))
        return batch

    def fetch(self, numbers, dispatched):
        assert numbers == dispatched
        self.pause()
        self.log.append(("fetch", dispatched))
        self.count(-self.rows * max(self.sizes[number] for number in dispatched))
        return dispatched


def run(fake, *, capacity=10**6, parts=None, **options):
    options = {"workers": 3, "memory": 2**40} | options
    parts = [range(len(fake.sizes))] if parts is None else parts
    return list(run_ahead(fake, parts, rows=fake.rows, capacity=capacity, pipeline=Pipeline(**options)))


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@settings(max_examples=60)
@given(SIZES, st.integers(1, 5), st.integers(1, 30), st.sampled_from([1, 200, 1000, 10**6]), st.integers(0, 3))
def test_everything_comes_once_within_bounds_and_in_one_order(sizes, rows, capacity, memory, ahead):
    logs = []
    for seed, held in ((0, False), (1, False), (None, True)):
        fake = Fake(sizes, rows, seed=seed, held=held)
        batches = run(fake, capacity=capacity, memory=memory, ahead=ahead)
        assert Counter(number for batch in batches for number in batch) == Counter(range(len(sizes)))
        assert fake.seen == list(range(len(sizes))) and fake.alive == 0
        assert [batch for kind, batch in fake.log if kind == "fetch"] == batches
        assert fake.peak <= max(memory, 2 * rows * max(sizes))
        flying = 0
        for kind, _ in fake.log:
            flying += 1 if kind == "dispatch" else -1
            assert flying <= ahead + 1
        logs.append(fake.log)
    assert logs[0] == logs[1]  # processes that share devices ask for the same, whatever their threads do


def test_what_fits_the_window_is_sorted_as_a_whole():
    sizes = [3, 9, 1, 7, 5, 8, 2]
    fake = Fake(sizes, 2)
    assert run(fake) == [[1, 5], [3, 4], [0, 6], [2]] == fake.plan
    assert run(Fake(sizes, 2), parts=[[0, 2, 5]]) == [[5, 0], [2]]
    assert run(Fake(sizes, 2), parts=[[0, 1, 2], [3], [4, 5, 6]]) == [[1, 0], [2], [3], [5, 4], [6]]


def test_threads_share_the_reading_and_two_batches_fly():
    fake = Fake([1] * 30, 3, seed=0)
    run(fake, workers=4)
    assert 1 < len(fake.threads) <= 4 and threading.get_ident() not in fake.threads
    kinds = [kind for kind, _ in fake.log]
    assert kinds == ["dispatch"] * 2 + ["dispatch", "fetch"] * 8 + ["fetch"] * 2
    alone = Fake([1], 1)
    run(alone)
    assert alone.threads == {threading.get_ident()}


@settings(max_examples=30)
@given(st.lists(st.integers(1, 1000), min_size=9, max_size=60), st.integers(1, 4), st.integers(1, 20))
def test_no_item_waits_for_ever(sizes, rows, capacity):
    window, oldest = Window(rows=rows, capacity=capacity, memory=10**9), 0
    for number, size in enumerate(sizes):
        if window.full:
            taken = [look.number for look in window.take()]
            assert len(taken) == rows and min(taken) >= oldest
            waiting = [look.number for *_, look in window._sorted]
            assert min(taken) < min(waiting, default=len(sizes))  # the oldest goes first
            oldest = min(taken) + 1
        window.add(Look(number, (size, 0)))


def test_the_first_bad_item_of_the_first_bad_batch_is_raised():
    before = threading.active_count()
    fake = Fake(list(range(40, 0, -1)), 4, seed=0, bad=[30, 10, 9])
    done = []
    with pytest.raises(ValueError, match="item 9 is bad"):
        for batch in run_ahead(fake, [range(40)], rows=4, capacity=100, pipeline=Pipeline(workers=3)):
            done += batch
    assert set(done) <= set(range(8)) and threading.active_count() == before
    fake.look = lambda number: (_ for _ in ()).throw(OSError(f"item {number} is gone"))
    with pytest.raises(OSError, match="item 0 is gone"):
        run(fake)


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal; a job in a shell's background starts without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_wait_and_the_threads():
    before, fake = threading.active_count(), Fake([1] * 100, 2)
    reached = threading.Event()

    def read(look):
        if look.number == 20:
            reached.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.05)
        return look.number

    fake.read = read
    with pytest.raises(KeyboardInterrupt):
        run(fake, workers=2)
    assert reached.is_set() and threading.active_count() == before


def test_a_consumer_that_stops_ends_the_threads():
    before = threading.active_count()
    batches = run_ahead(Fake([1] * 50, 2), [range(50)], rows=2, capacity=100, pipeline=Pipeline(workers=2))
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("options", "message"), [({"workers": 0}, "workers is 0"), ({"ahead": -1}, "ahead is -1")])
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(**options)


def test_what_was_not_begun_is_compiled_by_the_next_run(monkeypatch):
    monkeypatch.setattr(shape_compiler, "THREADS", 1)
    began, go_on, compiled = threading.Event(), threading.Event(), []

    def compile(example):
        began.set()
        assert go_on.wait(10)
        compiled.append(example)

    compiler = shape_compiler.ShapeCompiler(compile)
    with compiler.threads() as threads:
        threads.begin("first", lambda: "first")
        assert began.wait(10)
        threads.begin("second", lambda: "second")  # waits for the one thread, and then nobody wants it
    go_on.set()
    with compiler.threads() as threads:
        threads.begin("second", lambda: "second")
        threads.wait("second")
    assert "second" in compiled


def test_a_program_that_takes_long_to_compile_is_told_of_once(monkeypatch):
    monkeypatch.setattr(shape_compiler, "SAID_AFTER_SECONDS", 0.01)
    said = threading.Event()
    compiler = shape_compiler.ShapeCompiler(lambda _: None)
    with compiler.threads(said.set) as threads, threads.said("8 x 512"):
        assert said.wait(10)
    with compiler.threads(lambda: pytest.fail("the program is there")) as threads, threads.said("8 x 512"):
        time.sleep(0.05)
    with compiler.threads() as threads, threads.said("8 x 1024"):  # no bar is wanted
        time.sleep(0.05)
