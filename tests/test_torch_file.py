"""torch_file against torch itself, and against files made to do harm."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch

from smart_jax.files import torch_file
from smart_jax.files.torch_file import TorchFileError


def as_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array.copy())


def archive(path, data_pkl: bytes, entries=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", data_pkl)
        file.writestr("a/byteorder", b"little")
        for name, content in entries:
            file.writestr(f"a/{name}", content)
    return path


def tensor_pickle(storage="torch FloatStorage", key="0", numel=4, offset=0, shape=(4,), strides=(1,)) -> bytes:
    """A file's pickle with one tensor, built from opcodes so that every number can be wrong."""

    def encode(value):
        if isinstance(value, int):
            return b"\x8a" + bytes([len(pickle.encode_long(value))]) + pickle.encode_long(value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(encode, value)) + b"t"
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    module, name = storage.split()
    pid = (
        b"(" + encode("storage") + f"c{module}\n{name}\n".encode() + encode(key) + encode("cpu") + encode(numel) + b"tQ"
    )
    arguments = pid + encode(offset) + encode(shape) + encode(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"],
)
def test_reads_every_dtype_of_torch(tmp_path, dtype):
    torch.manual_seed(0)
    tensor = (torch.randn(3, 5) * 9).to(getattr(torch, dtype))
    torch.save({"x": tensor}, tmp_path / "x.pt")
    got = torch_file.load(tmp_path / "x.pt")["x"]
    assert got.dtype == np.dtype(dtype) and got.shape == (3, 5)
    assert torch.equal(as_torch(got), tensor)


def test_reads_views_scalars_parameters_and_plain_values(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "rows": base[1:3],
        "strided": base[::2, 1::2],
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    plain = {
        "n": 7,
        "big": 2**40,
        "minus": -3,
        "f": 0.25,
        "s": "é",
        "none": None,
        "yes": True,
        "list": [1, [2]],
        "t": (1, "a"),
    }
    torch.save({**tensors, **plain}, tmp_path / "x.pt")
    got = torch_file.load(tmp_path / "x.pt")
    assert {name: got[name] for name in plain} == plain
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(got[name].astype(np.float32), tensor.detach().float().numpy(), err_msg=name)
    assert np.shares_memory(got["transposed"], got["rows"])
    assert not got["rows"].flags.writeable


def test_reads_a_state_dict_and_a_newer_pickle_protocol(tmp_path):
    module = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 4))
    for protocol in (2, 4, 5):
        torch.save(OrderedDict(m=module.state_dict()), tmp_path / "m.pt", pickle_protocol=protocol)
        got = torch_file.load(tmp_path / "m.pt")["m"]
        assert list(got) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        np.testing.assert_array_equal(got["1.weight"], module[1].weight.detach().numpy())


def test_torch_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(3, 4)).astype(np.float32)
    value = {
        "f32": shared,
        "again": shared,
        "transposed": shared.T,
        "strided": shared[:, ::2],
        "f16": shared.astype(np.float16),
        "bf16": shared.astype(ml_dtypes.bfloat16),
        "i64": np.arange(5),
        "scalar": np.array(3.0, np.float64),
        "empty": np.zeros((0, 2), np.float32),
        "plain": {"a": [1, -70000, 2**50, -(2**31) - 1], "b": (True, False, None), "c": "ü", "d": 1e-300, "e": []},
    }
    torch_file.save(value, tmp_path / "x.pt")
    assert os.listdir(tmp_path) == ["x.pt"]
    got = torch.load(tmp_path / "x.pt", weights_only=True)
    assert got.pop("plain") == value.pop("plain")
    for name, array in value.items():
        assert got[name].shape == array.shape and torch.equal(got[name], as_torch(array)), name
    assert got["f32"].data_ptr() == got["again"].data_ptr()
    back = torch_file.load(tmp_path / "x.pt")
    for name, array in value.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("value", [{"x": object()}, {1: 2}, {"x": np.zeros(2, np.complex64)}, {"x": b"bytes"}])
def test_writer_refuses_other_values_and_leaves_no_file(tmp_path, value):
    with pytest.raises(TypeError, match="can"):
        torch_file.save(value, tmp_path / "x.pt")
    assert os.listdir(tmp_path) == []


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("open({!r}, 'w')",), r"\.eval"),
        (getattr, (1, "real"), "getattr"),
        (torch.load, ("x",), "torch.serialization.load"),
        (np.zeros, (3,), "zeros"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_refuses_to_call_anything(tmp_path, function, arguments, name, protocol):
    mark = tmp_path / "mark"
    arguments = [a.format(str(mark)) if isinstance(a, str) else a for a in arguments]
    path = archive(tmp_path / "evil.pt", pickle.dumps({"x": Call(function, *arguments)}, protocol))
    with pytest.raises(TorchFileError, match=name):
        torch_file.load(path)
    assert not mark.exists()


class Plain:
    """An instance of any class."""


def test_refuses_objects_and_whole_modules(tmp_path):
    torch.save({"x": Plain()}, tmp_path / "object.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for path in (tmp_path / "object.pt", tmp_path / "module.pt"):
        with pytest.raises(TorchFileError, match=r"Plain|NEWOBJ|torch\.nn|Linear"):
            torch_file.load(path)


FROZEN = {  # BUILD, item assignment and attributes on the stand-ins that names resolve to
    "build a dict on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "set an attribute on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
    "set an attribute on a storage type": b"\x80\x02ctorch\nFloatStorage\nN}X\x05\x00\x00\x00dtypeK\x01s\x86b.",
    "set an attribute on OrderedDict": b"\x80\x02ccollections\nOrderedDict\nN}X\x03\x00\x00\x00popK\x01s\x86b.",
    "assign an item of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x00K\x01s.",
    "return a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",
    "return a storage type": b"\x80\x02ctorch\nFloatStorage\n.",
    "extension registry": b"\x80\x02\x82\x01.",
    "instance of a class": b"\x80\x02(ios\nsystem\n.",
    "list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "deep nesting": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "memo number": b"\x80\x02]r\xff\xff\xff\x7f.",
    "odd persistent reference": b"\x80\x02K\x01Q.",
    "tuple as a key": b"\x80\x02}K\x01\x85K\x02s.",
    "shared tuples, whose hash takes 2**40 steps": b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"K\x01s.",
    "a key of nested tuples, whose hash overflows the stack": b"\x80\x02}(K\x00" + b"\x85" * 100_000 + b"K\x01u.",
    "a key in the arguments of an OrderedDict": b"\x80\x02ccollections\nOrderedDict\n]K\x00\x85K\x01\x86a\x85R.",
    "unfinished": b"\x80\x02}X\x05\x00\x00\x00ab",
    "empty": b"",
}


@pytest.mark.parametrize("name", FROZEN)
def test_hostile_pickles_are_errors_and_change_nothing(tmp_path, name):
    before = dict(torch_file._GLOBALS)
    with pytest.raises(TorchFileError, match=r"evil\.pt"):
        torch_file.load(archive(tmp_path / "evil.pt", FROZEN[name]))
    assert before == torch_file._GLOBALS
    torch.save({"x": torch.ones(2)}, tmp_path / "good.pt")
    np.testing.assert_array_equal(torch_file.load(tmp_path / "good.pt")["x"], [1, 1])


def test_sharing_does_not_multiply(tmp_path):
    # 60 lists, each holding the one before twice: 2**60 leaves if sharing were unfolded.
    data = (
        b"\x80\x02]"
        + b"".join(b"q" + bytes([i]) + b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(60))
        + b"."
    )
    got = torch_file.load(archive(tmp_path / "x.pt", data))
    assert got[0] is got[1]


def test_values_of_a_file_are_not_written_out(tmp_path):
    """A tuple that holds another twice, forty deep, has 2**40 parts where it is written into a message."""
    shared = b")" + b"q\x00h\x00\x86" * 40
    tensor = tensor_pickle()[2:-3] + shared + b"tR."
    content = [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    start = time.process_time()
    with pytest.raises(TorchFileError, match="carries metadata"):
        torch_file.load(archive(tmp_path / "metadata.pt", b"\x80\x02" + tensor, content))
    assert time.process_time() - start < 2


def test_many_storages_take_linear_time(tmp_path, monkeypatch):
    """The names of the archive are listed once, not for each storage: 20,000 of them took 47 s."""
    count, raw = 300, np.arange(4, dtype=np.float32).tobytes()
    one = tensor_pickle()[2:-1]
    data = b"\x80\x02](" + b"".join(one.replace(b"\x01\x00\x00\x000", _key(i)) for i in range(count)) + b"e."
    path = archive(tmp_path / "x.pt", data, [(f"data/{i}", raw) for i in range(count)])
    listed, names = [], zipfile.ZipFile.namelist
    monkeypatch.setattr(zipfile.ZipFile, "namelist", lambda file: listed.append(file) or names(file))
    assert len(torch_file.load(path)) == count and len(listed) < 5
    monkeypatch.setattr(torch_file, "_MAX_OPCODES", 1000)
    with pytest.raises(TorchFileError, match="instructions"):
        torch_file.load(path)


def _key(number: int) -> bytes:
    return struct.pack("<I", len(str(number))) + str(number).encode()


def test_overlapping_entries_are_refused(tmp_path):
    """Entries of the directory that share the bytes of one: from 1 MB, a thousand times as much would be read."""
    path = archive(tmp_path / "x.pt", tensor_pickle(numel=2**16, shape=(2**16,)), [("data/0", bytes(2**18))])
    whole = path.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    first = whole.rindex(b"PK\x01\x02", 0, end)  # the directory's entry of data/0, again by other names
    copies = [whole[first:end].replace(b"a/data/0", b"a/data/%c" % name) for name in b"ABCDEFGH"]
    (size,) = struct.unpack_from("<I", whole, end + 12)
    total = struct.unpack_from("<H", whole, end + 8)[0] + len(copies)
    tail = bytearray(whole[end:])
    struct.pack_into("<HHI", tail, 8, total, total, size + sum(map(len, copies)))
    path.write_bytes(whole[:end] + b"".join(copies) + bytes(tail))
    with pytest.raises(TorchFileError, match="overlap"):
        torch_file.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (5,)}, "fit"),
        ({"offset": 1}, "fit"),
        ({"offset": -1}, "invalid"),
        ({"strides": (-1,)}, "invalid"),
        ({"strides": (2,)}, "fit"),
        ({"shape": (2**62, 2**62), "strides": (0, 0)}, "fit"),
        ({"shape": (8,), "strides": (0,)}, "expanded"),
        ({"shape": (2, 2), "strides": (1,)}, "strides"),
        ({"shape": ("4",)}, "invalid"),
        ({"numel": 5}, "bytes"),
        ({"numel": -1}, "invalid"),
        ({"numel": 2**60}, "bytes"),
        ({"key": "1"}, "missing"),
        ({"key": "../data.pkl"}, "missing"),
        ({"storage": "torch ComplexFloatStorage"}, "torch.ComplexFloatStorage"),
        ({"storage": "collections OrderedDict"}, "storage"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, change, message):
    content = [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    good = torch_file.load(archive(tmp_path / "good.pt", tensor_pickle(), content))
    np.testing.assert_array_equal(good, np.arange(4))
    with pytest.raises(TorchFileError, match=message):
        torch_file.load(archive(tmp_path / "bad.pt", tensor_pickle(**change), content))


def test_truncated_at_every_part_is_a_clear_error(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(100)}, buffer)
    whole = buffer.getvalue()
    for size in [0, 1, 3, 40, *range(100, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(TorchFileError, match=r"cut\.pt.*truncated"):
            torch_file.load(tmp_path / "cut.pt")


def test_damaged_bytes_missing_old_and_compressed_files(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": torch.full((100,), 7.0)}, buffer)
    flipped = bytearray(buffer.getvalue())
    flipped[flipped.index(struct.pack("<f", 7.0) * 2)] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with pytest.raises(TorchFileError, match=r"flipped\.pt.*corrupt"):
        torch_file.load(tmp_path / "flipped.pt")
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        torch_file.load(tmp_path / "missing.pt")
    torch.save({"x": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(TorchFileError, match=r"old\.pt.*1\.6"):
        torch_file.load(tmp_path / "old.pt")
    bomb = archive(tmp_path / "bomb.pt", tensor_pickle(), [("data/0", bytes(16))], zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match="compressed"):
        torch_file.load(bomb)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("readme", "no tensors")
    with pytest.raises(TorchFileError, match=r"data\.pkl"):
        torch_file.load(tmp_path / "other.pt")
