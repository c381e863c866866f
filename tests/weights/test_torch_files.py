"""Files that torch itself writes, read without it."""

import collections
import io
import mmap
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from victor_jax.errors import UserError
from victor_jax.weights import torch_files
from victor_jax.weights.torch_files import read_torch_file

torch = pytest.importorskip("torch")

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


def save(tmp_path, state, **options):
    path = tmp_path / "model.bin"
    torch.save(state, path, **options)
    return path


def rezip(source, target, changes=None, compression=zipfile.ZIP_STORED, zip64=False):
    """The zip `source` again, with the members of `changes` replaced (or left out, where None)."""
    changes = changes or {}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = changes.get(name.split("/", 1)[1], old.read(name))
            if data is not None:
                with new.open(name, "w", force_zip64=zip64) as member:
                    member.write(data)
    return target


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def assert_same(tensor, expected):
    """Bit equality with a torch tensor, whose bytes torch itself lays out."""
    assert tensor.shape == tuple(expected.shape)
    loaded = tensor.load()
    assert loaded.shape == tensor.shape
    assert loaded.dtype == tensor.dtype == DTYPES[str(expected.dtype).removeprefix("torch.")]
    flat = expected.detach().contiguous().reshape(-1)
    np.testing.assert_array_equal(bits(loaded), flat.view(torch.uint8).numpy())


def refusal(path):
    """The message of the error that reading `path` raises: one sentence that names the file."""
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.fixture
def bytes_read(monkeypatch):
    """How many bytes each read took from the file."""
    counts = []
    original = np.fromfile

    def counting(path, dtype, count, offset):
        counts.append(count * dtype.itemsize)
        return original(path, dtype, count, offset=offset)

    monkeypatch.setattr(np, "fromfile", counting)
    return counts


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_bit_equal(tmp_path, name):
    dtype = getattr(torch, name)
    if name == "bool":
        values = torch.tensor([[True, False, True], [False, False, True]])
    else:  # all bit patterns, NaNs among them
        raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 4 * 6 * 8, np.uint8))
        values = raw.view(dtype).reshape(4, 6, -1)
    tensors = read_torch_file(save(tmp_path, {"x": values, "scalar": values.reshape(-1)[1].clone()}))
    assert list(tensors) == ["x", "scalar"]
    assert_same(tensors["x"], values)
    assert_same(tensors["scalar"], values.reshape(-1)[1])


def views(base):
    return {
        "base": base,
        "tied": base,
        "transposed": base.T,
        "permuted": base.reshape(4, 6, 10).permute(2, 0, 1),
        "offset": base[5:17],
        "columns": base[:, 3:7],
        "steps": base[1::3, ::2],
        "flat_steps": base.reshape(-1)[7::11],
        "diagonal": base.diagonal(),
        "expanded": base[2:3].expand(5, 10),
        "windows": base.reshape(-1)[:20].unfold(0, 6, 2),
        "scalar": base[3, 4],
        "empty": base[:0],
        "empty_columns": base[:, 4:4],
    }


@pytest.mark.parametrize(
    "base",
    [torch.arange(240, dtype=torch.int32).reshape(24, 10), torch.randn(24, 10).to(torch.bfloat16)],
    ids=["int32", "bfloat16"],
)
def test_views_of_a_shared_storage(tmp_path, base):
    state = views(base)
    tensors = read_torch_file(save(tmp_path, state))
    for name, expected in state.items():
        assert_same(tensors[name], expected)


def test_every_slice_of_every_view(tmp_path):
    state = views(torch.arange(240).reshape(24, 10))
    tensors = read_torch_file(save(tmp_path, state))
    cuts = [slice(None), slice(1, 3), slice(2, 100), slice(None, None, 2), slice(-2, None), slice(3, 3)]
    cuts += [slice(None, None, -1), slice(-1, 0, -2)]
    for name, expected in state.items():
        for i in range(len(cuts)):
            index = tuple(cuts[(i + 3 * axis) % len(cuts)] for axis in range(expected.ndim))
            np.testing.assert_array_equal(tensors[name].read(index), expected.numpy()[index], name)


def test_loaded_arrays_are_independent(tmp_path):
    tensors = read_torch_file(save(tmp_path, {"expanded": torch.zeros(1, 3).expand(2, 3)}))
    loaded = tensors["expanded"].load()
    loaded[0] = 1
    np.testing.assert_array_equal(loaded[1], 0)
    np.testing.assert_array_equal(tensors["expanded"].load(), 0)


def test_parameters_and_plain_tensors_in_one_dict(tmp_path):
    state = {"p": torch.nn.Parameter(torch.randn(3, 2)), "t": torch.randn(2)}
    tensors = read_torch_file(str(save(tmp_path, state)))
    for name, expected in state.items():
        assert_same(tensors[name], expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_of_a_module(tmp_path, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4))
    module[2].weight = torch.nn.Parameter(module[0].weight.detach().T)
    state = module.state_dict()
    assert state._metadata
    tensors = read_torch_file(save(tmp_path, state, pickle_protocol=protocol))
    assert list(tensors) == list(state)
    for name, expected in state.items():
        assert_same(tensors[name], expected)


def test_empty_state_dict(tmp_path):
    assert read_torch_file(save(tmp_path, {})) == {}


def test_a_row_slice_reads_only_its_rows(tmp_path, bytes_read):
    big = torch.arange(4000 * 500, dtype=torch.float32).reshape(4000, 500)
    tensors = read_torch_file(save(tmp_path, {"big": big, "half": big[2000:]}))
    assert bytes_read == []
    rows = tensors["big"].read((slice(3000, 3002), slice(0, 500)))
    np.testing.assert_array_equal(rows, big[3000:3002].numpy())
    np.testing.assert_array_equal(tensors["half"].read((slice(1, 2), slice(None))), big[2001:2002].numpy())
    columns = tensors["big"].read((slice(7, 9), slice(10, 20)))
    np.testing.assert_array_equal(columns, big[7:9, 10:20].numpy())
    assert columns.base is None, "a slice must not keep the rows that it was cut from"
    assert bytes_read == [2 * 500 * 4, 500 * 4, (500 + 10) * 4]


def test_a_read_touches_nothing_after_its_rows(tmp_path):
    big = torch.arange(4000 * 500, dtype=torch.float32).reshape(4000, 500)
    path = save(tmp_path, {"big": big})
    tensor = read_torch_file(path)["big"]
    os.truncate(path, path.stat().st_size // 2)
    index = (slice(10, 12), slice(0, 500))
    np.testing.assert_array_equal(tensor.read(index), big[10:12].numpy())
    with pytest.raises(UserError, match=r"model\.bin' is truncated"):
        tensor.load()
    path.unlink()
    with pytest.raises(UserError, match=r"Cannot read '.*model\.bin': No such file"):
        tensor.read(index)


def test_zip64_members(tmp_path):
    values = torch.randn(5, 7)
    path = rezip(save(tmp_path, {"x": values}), tmp_path / "zip64.bin", zip64=True)
    assert_same(read_torch_file(path)["x"], values)


@pytest.mark.skipif(not hasattr(torch.serialization, "skip_data"), reason="needs torch 2.6")
def test_a_storage_of_more_than_4_gb(tmp_path):
    """The file is one hole: it takes a few kilobytes of the disk."""
    rows, columns = 1_200_000, 1024
    hole = torch.from_file(str(tmp_path / "hole"), shared=True, size=rows * columns)
    with torch.serialization.skip_data():
        path = save(tmp_path, {"big": hole.reshape(rows, columns), "tail": torch.empty(3)})
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        in_file = torch.load(path, mmap=True)
    in_file["big"][-1] = last = torch.arange(columns, dtype=torch.float32)
    in_file["tail"][:] = last[:3]
    tensors = read_torch_file(path)
    rows_read = tensors["big"].read((slice(rows - 2, rows), slice(None)))
    np.testing.assert_array_equal(rows_read, torch.stack([0 * last, last]).numpy())
    np.testing.assert_array_equal(tensors["tail"].load(), last[:3].numpy())


class Reduced:
    """Is pickled as a call of `function`."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


MALICE = [
    (os.system, "touch {}", f"{os.system.__module__}.system"),
    (eval, "open({!r}, 'w').close()", "__builtin__.eval"),
    (os.mkdir, "{}", f"{os.mkdir.__module__}.mkdir"),
    (torch.load, "{}", "torch.serialization.load"),
]


@pytest.mark.parametrize(("function", "argument", "name"), MALICE, ids=[name for *_, name in MALICE])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, function, argument, name):
    trace = tmp_path / "was_run"
    path = save(tmp_path, {"x": torch.zeros(1), "bad": Reduced(function, argument.format(str(trace)))})
    message = refusal(path)
    assert f"asks for {name}, and this reader refuses to run code" in message
    assert not trace.exists()
    if function is os.system:
        torch.load(path, weights_only=False)
        assert trace.exists(), "the file of this test is harmless"


def with_pickle(tmp_path, pickled):
    return rezip(save(tmp_path, {"x": torch.zeros(2)}), tmp_path / "changed.bin", {"data.pkl": pickled})


@pytest.mark.parametrize(
    "opcodes",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b.",
        b"ctorch._utils\n_rebuild_parameter\n}X\x08\x00\x00\x00__code__K\x01sb.",
        b"ccollections\nOrderedDict\n)\x81}X\x05\x00\x00\x00itemsK\x01sb.",
    ],
)
def test_a_pickle_cannot_change_the_reader(tmp_path, opcodes):
    before = {name: dict(vars(value)) for name, value in torch_files.CALLABLES.items()}
    refusal(with_pickle(tmp_path, b"\x80\x02" + opcodes))
    assert before == {name: dict(vars(value)) for name, value in torch_files.CALLABLES.items()}


def test_attributes_of_a_state_dict_are_dropped(tmp_path):
    state = collections.OrderedDict(x=torch.ones(2))
    state.get = "not callable"
    assert_same(read_torch_file(save(tmp_path, state))["x"], torch.ones(2))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage",
        b"\x80\x02}",
        b"\x80\x02K\x01Q.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01)))}tR.",
        b"\x80\x02((X\x07\x00\x00\x00storage]tQ.",
    ],
)
def test_damaged_pickle(tmp_path, pickled):
    assert "damaged data.pkl" in refusal(with_pickle(tmp_path, pickled))


class StoragePickler(pickle.Pickler):
    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


STORAGE = ("storage", torch.FloatStorage, "0", "cpu", 2)


@pytest.mark.parametrize(
    "description",
    [
        (STORAGE, -1, (2,), (1,)),
        (STORAGE, 1, (2,), (-1,)),
        (STORAGE, 0, (-2,), (1,)),
        (STORAGE, 0, (2.0,), (1,)),
        (STORAGE, 0, (2,), ()),
        (STORAGE, 0, 2, 1),
        ("0", 0, (2,), (1,)),
        (("storage", 3, "0"), 0, (2,), (1,)),
        (("storage", torch.FloatStorage, 0), 0, (2,), (1,)),
    ],
    ids=str,
)
def test_a_tensor_description_that_makes_no_sense(tmp_path, description):
    rebuild = torch._utils._rebuild_tensor_v2
    pickled = io.BytesIO()
    StoragePickler(pickled, 2).dump({"x": Reduced(rebuild, *description, False, {})})
    assert "damaged data.pkl" in refusal(with_pickle(tmp_path, pickled.getvalue()))


@pytest.mark.parametrize("value", [3, "text", None, [1], {"weight": torch.zeros(1)}])
def test_a_value_that_is_no_tensor(tmp_path, value):
    message = refusal(save(tmp_path, {"x": torch.zeros(1), "state_dict": value}))
    assert "'state_dict' that is no tensor" in message


def test_a_key_that_is_no_name(tmp_path):
    assert "an entry 7 " in refusal(save(tmp_path, {7: torch.zeros(1)}))


@pytest.mark.parametrize("state", [[torch.zeros(1)], torch.zeros(1), None])
def test_not_a_dict(tmp_path, state):
    assert "does not hold a dict of tensors" in refusal(save(tmp_path, state))


def test_unsupported_dtypes(tmp_path):
    assert "ComplexFloatStorage" in refusal(save(tmp_path, {"x": torch.zeros(2, dtype=torch.complex64)}))
    assert "_rebuild_tensor_v3" in refusal(save(tmp_path, {"x": torch.zeros(2, dtype=torch.uint16)}))


def test_lazily_negated_tensor(tmp_path):
    negated = torch._neg_view(torch.ones(2))
    assert "lazily negated" in refusal(save(tmp_path, {"x": negated}))


def test_legacy_format_and_garbage(tmp_path):
    advice = "is no checkpoint of torch 1.6 or later: re-save it with a current torch."
    path = save(tmp_path, {"x": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    assert advice in refusal(path)
    for content in [b"", b"P", b"garbage" * 100, pickle.dumps({"x": 1})]:
        path.write_bytes(content)
        assert advice in refusal(path)


def test_a_zip_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, x=np.zeros(2))
    assert "no PyTorch checkpoint" in refusal(path)


def test_compressed_zip(tmp_path):
    source = save(tmp_path, {"x": torch.zeros(2)})
    path = rezip(source, tmp_path / "small.bin", compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)


def test_truncated_zip(tmp_path):
    path = save(tmp_path, {"x": torch.randn(8, 8)})
    content = path.read_bytes()
    for length in range(4, len(content), 37):
        path.write_bytes(content[:length])
        assert "is truncated or damaged" in refusal(path)


def test_damaged_zip(tmp_path):
    path = save(tmp_path, {"x": torch.zeros(2)})
    content = path.read_bytes()
    for intact, broken in [
        (b"model/version", b"model/\xffersion"),
        (b"PK\x01\x02", b"PK\x01\x07"),
    ]:
        path.write_bytes(content.replace(intact, broken))
        assert "is truncated or damaged" in refusal(path)


def test_a_storage_beyond_the_end_of_the_file(tmp_path):
    path = save(tmp_path, {"x": torch.zeros(2)})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model/data/0"))
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 20, 1 << 20)
    path.write_bytes(content)
    assert "is truncated or damaged" in refusal(path)


def test_damage_in_a_local_header(tmp_path):
    path = save(tmp_path, {"x": torch.zeros(2)})
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("model/data/0").header_offset
    with path.open("r+b") as file:
        file.seek(header)
        file.write(b"junk")
    assert "is truncated or damaged" in refusal(path)


def test_zip_that_lost_its_middle(tmp_path):
    path = save(tmp_path, {"x": torch.randn(64, 64)})
    content = path.read_bytes()
    path.write_bytes(content[:3000] + content[9000:])
    assert "is truncated or damaged" in refusal(path)


def test_missing_or_short_storage(tmp_path):
    source = save(tmp_path, {"x.weight": torch.zeros(5)})
    assert "lacks its part 'model/data/0'" in refusal(rezip(source, tmp_path / "a.bin", {"data/0": None}))
    short = rezip(source, tmp_path / "b.bin", {"data/0": bytes(19)})
    assert "too few bytes for its tensor 'x.weight'" in refusal(short)


def test_byte_order(tmp_path):
    source = save(tmp_path, {"x": torch.ones(5)})
    assert "not little-endian" in refusal(rezip(source, tmp_path / "big.bin", {"byteorder": b"big"}))
    unsaid = rezip(source, tmp_path / "unsaid.bin", {"byteorder": None})  # torch before 2.1
    assert_same(read_torch_file(unsaid)["x"], torch.ones(5))


def test_missing_file_and_folder(tmp_path):
    assert "Cannot read" in refusal(tmp_path / "missing.bin")
    assert "Cannot read" in refusal(tmp_path)
