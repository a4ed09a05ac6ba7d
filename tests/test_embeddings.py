import json
import os
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from smart_jax.retrieval import quantize
from smart_jax.retrieval.embeddings import INDEX, Embeddings
from tests.processes import ROOT, environment

LENGTHS = (3, 1, 5, 2)


def make(lengths=LENGTHS, *, width=4, pooled_width=4, seed=0, dtype=np.float32) -> Embeddings:
    rng = np.random.default_rng(seed)
    pooled = rng.normal(size=(len(lengths), pooled_width)).astype(dtype)
    tokens = rng.normal(size=(sum(lengths), width)).astype(dtype)
    return Embeddings(pooled, tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def items(e: Embeddings) -> list[tuple[list, list]]:
    """Contents of embeddings, item by item, as plain lists."""
    bounds = e.offsets.tolist()
    return [(e.pooled[i].tolist(), e.tokens[a:b].tolist()) for i, (a, b) in enumerate(pairwise(bounds))]


def test_holds_what_it_was_given():
    e = make(width=6, pooled_width=4)
    assert (len(e), e.pooled.shape, e.tokens.shape, e.offsets.dtype) == (4, (4, 4), (11, 6), np.int64)
    assert e.lengths.tolist() == list(LENGTHS)
    assert e.nbytes == 4 * 4 * 4 + 11 * 6 * 4 + 5 * 8
    assert repr(e) == "Embeddings(4 items, 11 tokens, pooled width 4, token width 6, float32)"


@pytest.mark.usefixtures("unchecked")
def test_takes_device_arrays_and_shares_host_memory():
    tokens = np.ones((2, 3), np.float32)
    e = Embeddings(jnp.ones((2, 3)), tokens, [0, 1, 2])
    assert isinstance(e.pooled, np.ndarray)
    assert np.shares_memory(e.tokens, tokens)


def test_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        make().tokens[0, 0] = np.nan


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (2, [2]),
        (-1, [3]),
        (np.int64(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None), [0, 1, 2, 3]),
        (slice(3, 1), []),
        (slice(None, None, -2), [3, 1]),
        ([3, 0, 0, -2], [3, 0, 0, 2]),
        (np.array([1, 2], np.int32), [1, 2]),
        (np.array([True, False, False, True]), [0, 3]),
        ([], []),
    ],
)
def test_indexing(index, expected):
    e = make()
    assert items(e[index]) == [items(e)[i] for i in expected]


def test_a_slice_is_a_view():
    e = make()
    assert np.shares_memory(e[1:3].tokens, e.tokens)


def test_iterates_item_by_item():
    e = make()
    assert [len(part.tokens) for part in e] == list(LENGTHS)


@pytest.mark.parametrize("index", [4, -5, [0, 4], np.array([True, False])])
def test_items_that_do_not_exist(index):
    with pytest.raises(IndexError):
        make()[index]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("index", [1.0, "a", [[0, 1]], [0.5]])
def test_an_index_that_is_none(index):
    with pytest.raises(TypeError, match="give an int, a slice"):
        make()[index]


def test_concatenate():
    parts = [make(seed=0), make((1,), seed=1), make(seed=2)[0:0], make((4, 4), seed=3)]
    joined = Embeddings.concatenate(parts)
    assert items(joined) == [item for part in parts for item in items(part)]


def test_concatenate_refuses_unequal_parts():
    with pytest.raises(ValueError, match="empty"):
        Embeddings.concatenate([])
    for other in (make(width=5), make(pooled_width=5), make(dtype=np.float16)):
        with pytest.raises(ValueError, match="part 1 is .*: widths and dtype must be equal"):
            Embeddings.concatenate([make(), other])


def test_an_item_without_tokens_gets_its_pooled_vector():
    pooled = np.arange(12, dtype=np.float32).reshape(4, 3)
    tokens = 100 + np.arange(9, dtype=np.float32).reshape(3, 3)
    e = Embeddings(pooled, tokens, np.array([0, 0, 2, 3, 3]))
    assert e.offsets.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(e.tokens, np.stack([pooled[0], *tokens, pooled[3]]))


def test_an_item_without_tokens_needs_equal_widths():
    with pytest.raises(ValueError, match="item 1 has no token, and its pooled vector of width 3 .* width 2"):
        Embeddings(np.ones((2, 3), np.float32), np.ones((1, 2), np.float32), np.array([0, 1, 1]))


ONES = np.ones((2, 3), np.float32)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("pooled", "tokens", "offsets", "error", "message"),
    [
        (ONES, ONES, [0, 1], ValueError, r"shape \(2,\) for 2 items: they must have shape \(3,\)"),
        (ONES, ONES, [1, 1, 2], ValueError, "start at 1"),
        (ONES, ONES, [0, 3, 2], ValueError, "not monotone: item 1 goes from token 3 to 2"),
        (ONES, ONES, [0, 1, 3], ValueError, "end at 3, but there are 2 tokens"),
        (ONES, ONES, [0.0, 1.0, 2.0], TypeError, "float64: they must be integers"),
        (ONES[0], ONES, [0, 1, 2], ValueError, r"pooled has shape \(3,\): it must be a matrix"),
        (ONES, ONES[:, :0], [0, 1, 2], ValueError, r"tokens has shape \(2, 0\)"),
        (ONES.astype(np.float64), ONES, [0, 1, 2], TypeError, "pooled has dtype float64.*astype"),
        (ONES, ONES.astype(np.int32), [0, 1, 2], TypeError, "tokens has dtype int32"),
        (ONES, ONES.astype(np.float16), [0, 1, 2], TypeError, "pooled is float32 and tokens are float16"),
    ],
)
def test_bad_parts(pooled, tokens, offsets, error, message):
    with pytest.raises(error, match=message):
        Embeddings(pooled, tokens, offsets)


@pytest.mark.parametrize("value", [np.nan, np.copysign(np.nan, -1), np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_named(value, dtype):
    tokens, pooled = np.ones((5, 3), dtype), np.ones((2, 3), dtype)
    tokens[3, 1] = value
    with pytest.raises(ValueError, match="item 1, token 1: tokens holds NaN or infinity"):
        Embeddings(pooled, tokens, np.array([0, 2, 5]))
    pooled[1, 2] = value
    with pytest.raises(ValueError, match="item 1: pooled holds NaN"):
        Embeddings(pooled, np.ones((5, 3), dtype), np.array([0, 2, 5]))


def test_infinities_that_cancel_are_found():
    tokens = np.ones((4, 3), np.float32)
    tokens[1, 0], tokens[2, 0] = np.inf, -np.inf
    with pytest.raises(ValueError, match="item 0, token 1"):
        Embeddings(np.ones((1, 3), np.float32), tokens, np.array([0, 4]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_large_finite_values_are_accepted(dtype):
    """Values of both signs, whose bits are those next to infinity's, and whose sum overflows."""
    largest = ml_dtypes.finfo(dtype).max
    big = np.asarray([[largest, largest, -largest, -0.0]], dtype)
    assert len(Embeddings(big, big, np.array([0, 1]))) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2**-11), (ml_dtypes.bfloat16, 2**-8)])
def test_half_precision_storage(dtype, tolerance):
    e = make()
    half = e.astype(dtype)
    assert half.dtype == half.pooled.dtype == dtype
    assert half.tokens.nbytes * 2 == e.tokens.nbytes
    np.testing.assert_allclose(half.tokens.astype(np.float32), e.tokens, rtol=tolerance)
    assert half.astype(np.float32).dtype == np.float32
    assert e.astype("float32") is e


def test_astype_refuses_what_cannot_be_stored():
    with pytest.raises(TypeError, match="int16: embeddings are stored as float32, float16, bfloat16 or int8"):
        make().astype(np.int16)
    big = np.full((1, 3), 1e6, np.float32)
    with pytest.raises(ValueError, match="item 0: pooled holds NaN or infinity"):
        Embeddings(big, big, np.array([0, 1])).astype(np.float16)


def test_int8_tokens():
    e = make(width=6)
    tokens = e.tokens.copy()
    tokens[4] = 0
    e = Embeddings(e.pooled, tokens, e.offsets)
    small = e.astype(np.int8)
    assert (small.dtype, small.pooled.dtype, small.scales.dtype) == (np.int8, np.float32, np.float32)
    assert small.nbytes == e.nbytes - 11 * 6 * 3 + 11 * 4
    assert np.abs(small.tokens).max(axis=1).tolist() == [0 if i == 4 else 127 for i in range(11)]
    back = small.astype(np.float32)
    assert (np.abs(back.tokens - e.tokens) <= small.scales[:, None] / 2 * (1 + 1e-6)).all()
    np.testing.assert_array_equal(back.pooled, e.pooled)
    for index in (slice(1, 3), [3, 0, 0], 2):
        np.testing.assert_array_equal(small[index].astype(np.float32).tokens, back[index].tokens)
    joined = Embeddings.concatenate([small[:1], small[1:]])
    np.testing.assert_array_equal(joined.scales, small.scales)
    with pytest.raises(ValueError, match="part 1 is"):
        Embeddings.concatenate([small, e])
    filled = Embeddings(small.pooled[:, :4], small.tokens[:, :4], np.array([0, 3, 4, 11, 11]), small.scales)
    np.testing.assert_allclose(filled.astype(np.float32).tokens[-1], small.pooled[3], atol=0.02)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_int8_tokens_do_not_depend_on_the_array_that_they_are_in(dtype, monkeypatch):
    """Large arrays are quantised by XLA, small ones and the rest by NumPy."""
    monkeypatch.setattr(quantize, "VALUES", 5 * 256)
    tokens = np.random.default_rng(0).normal(size=(13, 256)).astype(dtype)
    tokens[3], tokens[4] = 0, 1e-38
    e = Embeddings(np.ones((13, 2), dtype), tokens, np.arange(14))
    together, alone = e.astype(np.int8), Embeddings.concatenate([e[i].astype(np.int8) for i in range(13)])
    np.testing.assert_array_equal(together.tokens, alone.tokens)
    np.testing.assert_array_equal(together.scales, alone.scales)
    assert np.abs(together.tokens.astype(int)).max(axis=1).tolist() == [0 if i in (3, 4) else 127 for i in range(13)]


@pytest.mark.usefixtures("unchecked")
def test_int8_tokens_and_scales_belong_together():
    small = make().astype(np.int8)
    with pytest.raises(ValueError, match="tokens are int8: int8 tokens have scales, and no others do"):
        Embeddings(small.pooled, small.tokens, small.offsets)
    with pytest.raises(ValueError, match="tokens are float32: int8 tokens have scales"):
        Embeddings(small.pooled, make().tokens, small.offsets, small.scales)
    with pytest.raises(ValueError, match=r"scales are float32 \(2,\) for 11 tokens"):
        Embeddings(small.pooled, small.tokens, small.offsets, small.scales[:2])
    bad = small.scales.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="item 1, token 0: its scale holds NaN"):
        Embeddings(small.pooled, small.tokens, small.offsets, bad)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("lengths", [LENGTHS, ()])
def test_save_and_load(tmp_path, dtype, lengths, mmap):
    e = make(lengths, width=6).astype(dtype)
    e.save(tmp_path / "a" / "b")
    loaded = Embeddings.load(tmp_path / "a" / "b", mmap=mmap)
    for name in ("pooled", "tokens", "offsets", "scales")[: 4 if dtype == np.int8 else 3]:
        assert getattr(loaded, name).dtype == getattr(e, name).dtype
        np.testing.assert_array_equal(getattr(loaded, name), getattr(e, name))
    assert (loaded.scales is None) == (dtype != np.int8)


def test_a_mapped_file_is_not_read(tmp_path):
    make(width=6).save(tmp_path)
    e = Embeddings.load(tmp_path, mmap=True)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    at = content.index(np.asarray(e.tokens).tobytes())
    with file.open("r+b") as open_file:
        open_file.seek(at)
        open_file.write(np.full(6, 42, np.float32).tobytes())
    assert e.tokens[0].tolist() == [42] * 6


@pytest.mark.parametrize("size", [4, 100, -1])
def test_a_truncated_file_is_not_mapped(tmp_path, size):
    make(width=6).save(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="is corrupt or truncated"):
        Embeddings.load(tmp_path, mmap=True)


def test_saving_again_replaces_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    make().save(tmp_path)
    make((2, 2), seed=1).save(tmp_path)
    assert items(Embeddings.load(tmp_path)) == items(make((2, 2), seed=1))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors", ".txt"]


def test_a_save_that_is_cut_off_leaves_the_former_one(tmp_path, monkeypatch):
    make().save(tmp_path)

    def full(*_, **__):
        raise OSError("no space left on device")

    for step in (
        "files.safetensors_file.safetensors_header",
        "files.whole_files.os.fsync",
        "retrieval.saved_files.write_index",
        "retrieval.saved_files.json.dumps",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"smart_jax.{step}", full)
            with pytest.raises(OSError, match="no space left"):
                make((9,), seed=5).save(tmp_path)
        assert items(Embeddings.load(tmp_path)) == items(make())
        assert len(list(tmp_path.iterdir())) == 2


def saved(folder):
    make().save(folder)
    return folder / INDEX, next(folder.glob("*.safetensors"))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"embeddings\.json': give the folder"):
        Embeddings.load(tmp_path / "nowhere")
    _, tensors = saved(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match="copy the folder as a whole"):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 20, 0.5, 0.99])
def test_truncated_tensors(tmp_path, kept):
    _, tensors = saved(tmp_path)
    data = tensors.read_bytes()
    tensors.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match=r"safetensors' is corrupt or truncated .*: encode and save again"):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something"}, "does not describe embeddings"),
        ({"version": 2}, "has version 2, this library reads 1"),
        ({"file": "../embeddings.safetensors"}, "names no safetensors file of its folder"),
        ({"file": None}, "names no safetensors file"),
        ({"items": 5}, "says items = 5, but .* has 4"),
        ({"tokens": 12}, "says tokens = 12, but .* has 11"),
        ({"dtype": "float16"}, "says dtype = float16, but .* has float32"),
        ({"token_width": 8}, "says token_width = 8, but .* has 4"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, changes, message):
    index, _ = saved(tmp_path)
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_an_index_that_is_no_json_object(tmp_path, text):
    index, _ = saved(tmp_path)
    index.write_text(text)
    with pytest.raises(
        ValueError, match=r"embeddings\.json'? (is not valid JSON|holds a JSON list|does not describe embeddings)"
    ):
        Embeddings.load(tmp_path)


def test_tensors_of_another_kind(tmp_path):
    from safetensors.numpy import save_file

    _, tensors = saved(tmp_path)
    save_file({"pooled": ONES}, tensors)
    with pytest.raises(ValueError, match="corrupt or truncated .*tokens"):
        Embeddings.load(tmp_path)
    e = make()
    offsets = np.array([0, 3, 2, 9, 11])
    save_file({"pooled": np.array(e.pooled), "tokens": np.array(e.tokens), "offsets": offsets}, tensors)
    with pytest.raises(ValueError, match="corrupt or truncated .*not monotone"):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    ("offsets", "message"), [((0, 3, 2, 9, 11), "not monotone: item 1"), ((0, 3, 4, 9, 10), "end")]
)
def test_offsets_of_a_file_are_checked(tmp_path, offsets, message, mmap):
    from safetensors.numpy import save_file

    _, tensors = saved(tmp_path)
    e = make()
    offsets = np.array(offsets)
    save_file({"pooled": np.array(e.pooled), "tokens": np.array(e.tokens), "offsets": offsets}, tensors)
    with pytest.raises(ValueError, match=f"corrupt or truncated.*{message}"):
        Embeddings.load(tmp_path, mmap=mmap)


def test_tiny_values_in_int8():
    """Down to denormal ones, which XLA takes for 0 on a CPU and NumPy does not; both ways give the same."""
    rng = np.random.default_rng(0)
    largest = np.float32(10.0) ** np.arange(-45, -30, dtype=np.float32)
    tokens = (rng.uniform(-1, 1, (len(largest), 8)) * largest[:, None]).astype(np.float32)
    tokens[:, 0] = largest
    tokens[-1, 1:] = np.float32(1e-40)
    integers, scales = quantize.quantize(tokens)
    for found, expected in zip(quantize._by_xla(tokens), (integers, scales), strict=True):
        np.testing.assert_array_equal(np.asarray(found), expected)
    error = np.abs(integers.astype(np.float64) * scales[:, None] - tokens)
    assert (error <= np.maximum(0.51 * scales[:, None] * (largest > 1e-35)[:, None], 1e-35)).all()
    assert np.isfinite(scales).all() and (scales > 0).all()


SAVING = """
import json, os, random, signal, sys, threading, time
from smart_jax import Embeddings
from tests.test_embeddings import make

folder, made = sys.argv[1], {}
for line in sys.stdin:  # how often to save embeddings of how many items, and when to be killed
    times, count, moment = json.loads(line)
    embeddings = made.setdefault(count, make([50] * count, width=64))
    child = os.fork()
    if not child:
        if moment is not None:
            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
        for _ in range(times):
            embeddings.save(folder)
        os._exit(0)
    if moment is not None:
        print(os.waitpid(child, 0), flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def saver(folder):
    """A process that forks for each line that is written to it, before any thread is there."""
    command, pipes = [sys.executable, "-c", SAVING, str(folder)], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes)


@pytest.mark.slow
def test_killed_writers_leave_nothing_for_the_next(tmp_path):
    assert killed_saves(tmp_path, rounds=20) >= 10


def killed_saves(folder: Path, rounds: int) -> int:
    """Returns how many killed writers left files, of which the next leaves nothing; all find whole embeddings."""
    whole = make([50] * 40, width=64)
    whole.save(folder)
    expected, rng, left = whole.pooled.tobytes(), np.random.default_rng(0), 0
    with saver(folder) as process:
        for moment in rng.uniform(0, 0.1, rounds).tolist():
            process.stdin.write(json.dumps([10**6, 400, moment]) + "\n")
            process.stdin.flush()
            process.stdout.readline()
            assert len(Embeddings.load(folder)) in (40, 400)
            left += len(list(folder.iterdir())) > 2
        process.stdin.close()
    whole.save(folder)
    assert Embeddings.load(folder).pooled.tobytes() == expected
    assert len(list(folder.iterdir())) == 2
    return left


@pytest.mark.slow
def test_several_writers_beside_readers(tmp_path):
    """Each load gets what one of them has saved, and only the last one's files stay."""
    sizes = (2, 3, 5)
    make([50] * 2, width=64).save(tmp_path)
    with saver(tmp_path) as process:
        for count in sizes:
            process.stdin.write(json.dumps([15, count, None]) + "\n")
        process.stdin.close()
        seen = set()
        while process.poll() is None:
            seen.add(len(Embeddings.load(tmp_path, mmap=len(seen) % 2 == 0)))
    assert seen and seen <= set(sizes)
    Embeddings.load(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_files_are_for_whom_the_umask_lets(tmp_path):
    former = os.umask(0o027)
    try:
        make().save(tmp_path)
    finally:
        os.umask(former)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
