"""MATLAB files come out as plain values; damaged and hostile ones are refused, and touch nothing else."""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stmul.errors import WeightsError
from stmul.matfile import Foreign, read_variables
from stmul.matfile.hdf5 import read_hdf5
from tests.stmul.matconvnet_files import Net, final, write

VERSIONS = ("v5", "v7", "v7.3")
KINDS = ("f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


@cache
def head() -> Net:
    """A few layers, quicker to write."""
    net = final(stack=3)
    return replace(net, layers=net.layers[:8], params=net.params[:8], vars=net.vars[:8])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("files")

    def save(version: str) -> Path:
        path = folder / f"{version}.mat"
        if not path.exists():
            write(path, head(), version=version, extras=True)
        return path

    return save


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        alike = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape
        return alike and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


# --- Values -----------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(KINDS).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4))
)
TEXTS = st.text(st.characters(codec="utf-16", exclude_characters="\0", exclude_categories=["Cs"], max_codepoint=0xFFFF))
FIELDS = st.from_regex("[a-z]{1,20}", fullmatch=True)
VALUES = st.recursive(
    NUMBERS | TEXTS,
    lambda inner: st.dictionaries(FIELDS, inner, min_size=1, max_size=4) | st.lists(inner, min_size=1, max_size=4),
    max_leaves=8,
)


def for_scipy(value: Any) -> Any:
    """Cells as arrays of objects: scipy would make matrices of lists."""
    if isinstance(value, dict):
        return {name: for_scipy(one) for name, one in value.items()}
    if isinstance(value, list):
        cells = np.empty((1, len(value)), object)
        for i, one in enumerate(value):
            cells[0, i] = for_scipy(one)
        return cells
    return value


@given(value=VALUES, packed=st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_scipy_writes_comes_back(tmp_path_factory, value, packed):
    path = tmp_path_factory.getbasetemp() / "value.mat"
    scipy.io.savemat(path, {"x": for_scipy(value), "y": 1.0}, do_compression=packed)
    assert equal(read_variables(path, ("x", "z")), {"x": value})


@pytest.mark.parametrize("version", ["v5", "v7"])
def test_a_net_is_read_as_scipy_reads_it(saved, version):
    def plain(value: Any) -> Any:
        if isinstance(value, scipy.io.matlab.MatlabFunction):
            return Foreign("a function handle")
        if value is None:
            return {}
        if value.dtype.names is not None:
            rows = [{name: plain(one[name]) for name in value.dtype.names} for one in value.flatten(order="F")]
            return rows[0] if len(rows) == 1 else rows
        if value.dtype == object:
            cells = [plain(one) for one in value.flatten(order="F")]
            return {} if value.shape == (1, 1) and cells == [{}] else cells
        return value.item() if value.dtype.kind == "U" and value.size else "" if value.dtype.kind == "U" else value

    names = ("net", "state", "stats", "opts")
    expected = scipy.io.loadmat(saved(version))
    assert equal(read_variables(saved(version), names), {name: plain(expected[name]) for name in names})


def test_hdf5_holds_what_the_others_hold(saved):
    names = ("net", "state", "stats")
    one, other = read_variables(saved("v7"), names), read_variables(saved("v7.3"), names)
    for found in (one, other):
        found["net"]["layers"] = {layer["name"]: dict(sorted(layer.items())) for layer in found["net"]["layers"]}
        for layer in found["net"]["layers"].values():
            layer["block"] = dict(sorted(layer["block"].items()))
        found["net"] = dict(sorted(found["net"].items()))
        found["net"]["meta"] = str(found["net"]["meta"].keys())
    assert list(one["net"]["layers"]) == list(other["net"]["layers"])
    for name, layer in one["net"]["layers"].items():
        twin = other["net"]["layers"][name]
        assert {field: layer[field] for field in ("name", "type", "inputs", "outputs")} == {
            field: twin[field] for field in ("name", "type", "inputs", "outputs")
        }
        assert layer["block"].keys() == twin["block"].keys()
        assert all(equal(value, twin["block"][field]) for field, value in layer["block"].items())
    assert equal(
        [dict(sorted(p.items())) for p in one["net"]["params"]],
        [dict(sorted(p.items())) for p in other["net"]["params"]],
    )


def test_fields_that_nobody_asks_for_are_left_out(saved):
    for version in VERSIONS:
        found = read_variables(saved(version), ("net",), {"block", "meta", "value"})["net"]
        assert not {"meta"} & found.keys()
        assert set(found["layers"][0]) == {"name", "type", "inputs", "outputs", "params"}
        assert found["params"][0]["name"] == "conv1_filter_spatial"


def test_what_is_no_data_is_foreign(saved, tmp_path):
    for version in VERSIONS:
        assert isinstance(read_variables(saved(version), ("opts",))["opts"]["getBatch"], Foreign)
    sparse = scipy.sparse.csc_array(np.eye(3))
    scipy.io.savemat(tmp_path / "x.mat", {"x": 1 + np.eye(2) * 2j, "y": sparse})
    found = read_variables(tmp_path / "x.mat", ("x", "y"))
    assert found == {"x": Foreign("complex numbers"), "y": Foreign("a sparse matrix")}


def test_rows_of_text_are_apart(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"x": np.array(["one", "four"])})
    assert read_variables(tmp_path / "x.mat", ("x",)) == {"x": ["one ", "four"]}
    with h5py.File(tmp_path / "y.mat", "w") as file:
        file["x"] = np.array([list(map(ord, row)) for row in ("one ", "four")], np.uint16).T
        file["x"].attrs["MATLAB_class"] = np.bytes_("char")
    assert read_variables(tmp_path / "y.mat", ("x",)) == {"x": ["one ", "four"]}


def test_the_order_of_bytes_does_not_matter(tmp_path):
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    flags = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 2))
    name = struct.pack(">HH", 1, 1) + b"x\0\0\0"
    matrix = element(14, flags + name + element(3, struct.pack(">hh", 258, -2)))
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + matrix)
    found = read_variables(tmp_path / "x.mat", ("x",))["x"]
    assert found.tolist() == scipy.io.loadmat(tmp_path / "x.mat")["x"].tolist() == [[258, -2]]


# --- Damage -----------------------------------------------------------------------------------------------------------


def attempt(path: Path, content: bytes) -> bool:
    """Whether it is read; the only error is WeightsError, and no memory is taken for what is only claimed."""
    path.write_bytes(content)
    try:
        read_variables(path, ("net", "state"))
    except WeightsError as error:
        said = str(error)
    else:
        return True
    assert said.startswith(f"{path}: not readable as a MATLAB file (")
    assert "\n" not in said
    return False


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_cut_anywhere_is_refused(saved, tmp_path, version):
    whole = saved(version).read_bytes()
    needed = len(whole) if version == "v7.3" else whole.rindex(b"\x0f\0\0\0" if version == "v7" else b"state")
    step = max(1, needed // 150)
    assert not any(attempt(tmp_path / "cut.mat", whole[:cut]) for cut in (*range(129, needed, step), *range(128)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_with_flipped_bytes_is_read_or_refused(saved, tmp_path, version):
    draws, whole = random.Random(version), saved(version).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(15 if version == "v7.3" else 150):
        content = bytearray(whole)
        for _ in range(draws.choice((1, 1, 3))):
            place = draws.randrange(len(content))
            if draws.random() < 0.5:
                content[place] ^= 1 << draws.randrange(8)
            else:
                place -= place % 4
                words = (0, 1, 14, 15, 0x7FFFFFFF, 0x40000000, 0x80000000, 0xFFFFFFFF)
                content[place : place + 4] = struct.pack("<I", draws.choice(words))
        refused += not attempt(tmp_path / "flipped.mat", bytes(content))
    assert refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_packed_file_with_a_wrong_bit_in_a_variable_is_refused(saved, tmp_path):
    whole = saved("v7").read_bytes()
    length = struct.unpack_from("<I", whole, 132)[0]
    for place in range(136, 136 + length, max(1, length // 200)):
        content = bytearray(whole)
        content[place] ^= 0x10
        assert not attempt(tmp_path / "flipped.mat", bytes(content))


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"a text\n" * 100, b"PK\3\4" + bytes(600), pickle.dumps({"net": 1}), bytes(1000), b"\x89HDF\r\n\x1a\n"],
    ids=["empty", "one byte", "text", "zip", "pickle", "zeros", "hdf5"],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    assert not attempt(tmp_path / "net.mat", content)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    assert not attempt(tmp_path / "net.mat", pickle.dumps(Trap()))
    assert not (tmp_path / "run").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.mat", tmp_path, tmp_path / "pipe"):
        with pytest.raises(WeightsError, match="no such file"):
            read_variables(path, ("net",))


# --- Claims -----------------------------------------------------------------------------------------------------------


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, shape: tuple[int, ...], *contents: bytes, name: bytes = b"") -> bytes:
    start = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, start + element(1, name) + b"".join(contents))


def variable(content: bytes, *, packed: bool = True) -> bytes:
    """A file with that one variable."""
    packing = zlib.compress(content)
    head = b"MATLAB 5.0".ljust(124) + b"\0\x01IM"
    return head + (struct.pack("<II", 15, len(packing)) + packing if packed else content)


FIELD_NAME = element(5, struct.pack("<i", 8)) + element(1, b"a".ljust(8, b"\0"))
MOST = 2**31 - 1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        matrix(1, (MOST, MOST), name=b"net"),
        matrix(1, (1, MOST), *[matrix(6, (0, 0))] * 3, name=b"net"),
        matrix(2, (MOST, MOST), element(5, struct.pack("<i", 8)), element(1, b""), name=b"net"),
        matrix(2, (MOST, 1), FIELD_NAME, name=b"net"),
        matrix(4, (MOST, MOST), element(4, b"a\0"), name=b"net"),
        matrix(6, (MOST, MOST, MOST), element(9, bytes(8)), name=b"net"),
        matrix(6, (-1, 1), element(9, bytes(8)), name=b"net"),
        matrix(6, (2,) * 70, element(9, bytes(8)), name=b"net"),
        matrix(6, (1, 1), struct.pack("<II", 9, 2**32 - 8), name=b"net"),
        matrix(6, (1, 1), element(99, bytes(8)), name=b"net"),
        matrix(6, (1, 1), struct.pack("<HH", 9, 9) + bytes(8), name=b"net"),
        matrix(1, (1, 1), struct.pack("<II", 14, 2**32 - 8), name=b"net"),
        matrix(1, (1, 2**20 + 1), *[struct.pack("<II", 14, 0)] * (2**20 + 1), name=b"net"),
        matrix(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b"abc"), name=b"net"),
        matrix(6, (1, 1), element(9, bytes(8)), name=b"net") * 2,
    ],
)
def test_what_is_only_claimed_is_refused_without_taking_memory(tmp_path, content, packed):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if packed and content.count(b"net") == 2:
        content = content[: len(content) // 2]
        assert not attempt(tmp_path / "net.mat", variable(content) + variable(content)[128:])
    else:
        assert not attempt(tmp_path / "net.mat", variable(content, packed=packed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("levels", [20, 40, 5000])
def test_cells_in_cells_are_followed_so_far(tmp_path, levels):
    content = matrix(6, (1, 1), element(9, bytes(8)))
    for level in range(levels):
        content = matrix(1, (1, 1), content, name=b"net" if level == levels - 1 else b"")
    assert attempt(tmp_path / "net.mat", variable(content)) == (levels < 30)


@contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    with h5py.File(path, "w") as file:
        yield file


def marked(item: Any, kind: str, **more: Any) -> Any:
    item.attrs["MATLAB_class"] = np.bytes_(kind)
    item.attrs.update(more)
    return item


def test_hdf5_that_only_claims_is_refused_without_taking_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    makers: list[Callable[[h5py.File], Any]] = [
        lambda file: marked(file.create_dataset("net", (2**40,), "f4", chunks=(2**16,)), "single"),
        lambda file: marked(file.create_dataset("net", (2**28,), "f4", chunks=(2**16,), compression=9), "single"),
        lambda file: marked(file.create_dataset("net", (2**40,), h5py.ref_dtype, chunks=(2**16,)), "cell"),
        lambda file: marked(file.create_dataset("net", (2**16,) * 4, "u2", chunks=(16,) * 4), "char"),
    ]
    for make in makers:
        with hdf5(tmp_path / "net.mat") as file:
            make(file)
        assert not attempt(tmp_path / "net.mat", (tmp_path / "net.mat").read_bytes())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize(("kind", "empty"), [("double", np.zeros((0, 0))), ("char", ""), ("cell", []), ("struct", {})])
def test_what_is_empty_takes_nothing_whatever_its_sides(tmp_path, kind, empty):
    with hdf5(tmp_path / "net.mat") as file:
        marked(file.create_dataset("net", data=np.array([2**40, 2**40], np.uint64)), kind, MATLAB_empty=np.uint8(1))
    assert equal(read_variables(tmp_path / "net.mat", ("net",)), {"net": empty})


def test_what_is_shared_many_times_over_is_read_once(tmp_path):
    with hdf5(tmp_path / "net.mat") as file:
        inner = marked(file.create_dataset("a", data=np.ones((1, 1))), "double")
        for level in range(25):  # 10 ** 25 ways to the one number
            inner = marked(file.create_dataset(f"c{level}", data=np.array([[inner.ref] * 10], h5py.ref_dtype)), "cell")
        file["net"] = inner
    found = read_variables(tmp_path / "net.mat", ("net",))["net"]
    for _ in range(25):
        found = found[9]
    assert found.tolist() == [[1.0]]


def test_what_holds_itself_is_refused(tmp_path):
    with hdf5(tmp_path / "net.mat") as file:
        group = marked(file.create_group("net"), "struct")
        group["again"] = group
    assert not attempt(tmp_path / "net.mat", (tmp_path / "net.mat").read_bytes())
    with hdf5(tmp_path / "net.mat") as file:
        cell = marked(file.create_dataset("net", (2, 1), h5py.ref_dtype), "cell")
        cell[:] = np.array([[cell.ref], [cell.ref]], h5py.ref_dtype)
    assert not attempt(tmp_path / "net.mat", (tmp_path / "net.mat").read_bytes())


# --- Other files ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """The names of the files in a folder that are opened meanwhile, as the kernel tells them."""
    library = ctypes.CDLL(None, use_errno=True)
    watch = library.inotify_init1(os.O_NONBLOCK)
    assert library.inotify_add_watch(watch, bytes(folder), 0x20) >= 0  # IN_OPEN
    names: list[str] = []
    yield names
    try:
        events = os.read(watch, 2**16)
    except BlockingIOError:
        events = b""
    while events:
        length = struct.unpack_from("iIII", events)[3]
        names.append(events[16 : 16 + length].rstrip(b"\0").decode())
        events = events[16 + length :]
    os.close(watch)


def elsewhere(file: h5py.File, other: Path) -> None:
    """Every way for a file to have something of another."""
    file["net"] = h5py.ExternalLink(str(other / "other.mat"), "/net")
    group = marked(file.create_group("meta"), "struct")
    group["linked"] = h5py.ExternalLink(str(other / "other.mat"), "/numbers")
    group["path"] = h5py.SoftLink("/net")
    layout = h5py.VirtualLayout((4,), np.float64)
    layout[:] = h5py.VirtualSource(str(other / "other.mat"), "numbers", (4,))
    marked(group.create_virtual_dataset("virtual", layout), "double")
    raw = [(str(other / "raw"), 0, 32)]
    marked(group.create_dataset("external", (4,), np.float64, external=raw), "double")
    cells = marked(group.create_dataset("cells", (4,), h5py.ref_dtype, external=raw), "cell")
    marked(group.create_dataset("held", data=np.array([cells.ref], h5py.ref_dtype)), "cell")
    marked(group.create_dataset("text", data=["/net"], dtype=h5py.string_dtype()), "cell")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with a net."""
    folder = tmp_path / "other"
    folder.mkdir()
    with hdf5(folder / "other.mat") as file:
        marked(file.create_group("net"), "struct")["weights"] = marked(
            file.create_dataset("numbers", data=np.arange(4.0)), "double"
        )
    (folder / "raw").write_bytes(bytes(32))
    return folder


def test_nothing_outside_the_file_is_opened(tmp_path, other):
    with hdf5(tmp_path / "net.mat") as file:
        elsewhere(file, other)
    with opened(other) as names, opened(tmp_path) as near:
        found = read_variables(tmp_path / "net.mat", ("net", "meta", "layers"))
    assert names == []
    assert "net.mat" in near  # the watch works
    assert set(found) == {"net", "meta"}
    assert isinstance(found["net"], Foreign)
    assert isinstance(found["meta"].pop("held")[0], Foreign)
    assert set(map(type, found["meta"].values())) == {Foreign}
    with opened(other) as names:
        assert "weights" in h5py.File(tmp_path / "net.mat")["net"]
    assert names  # h5py by itself follows


def test_references_that_lie_in_other_files_are_refused(tmp_path, other):
    with hdf5(tmp_path / "net.mat") as file:
        group = marked(file.create_group("net"), "struct")
        group.create_dataset("name", (4, 1), h5py.ref_dtype, external=[(str(other / "raw"), 0, 32)])
    with opened(other) as names:
        assert not attempt(tmp_path / "net.mat", (tmp_path / "net.mat").read_bytes())
    assert names == []


def test_a_reference_to_nothing_and_a_type_are_foreign(tmp_path):
    with hdf5(tmp_path / "net.mat") as file:
        marked(file.create_dataset("net", (2, 1), h5py.ref_dtype), "cell")
        file["layers"] = np.dtype("f8")
        marked(file.create_dataset("params", data=["text"], dtype=h5py.string_dtype()), "single")
        marked(file.create_dataset("meta", data=np.ones(2, [("real", "f4"), ("imag", "f4")])), "single")
    found = read_hdf5(tmp_path / "net.mat", ("net", "layers", "params", "meta"), frozenset())
    assert found["net"] == [Foreign("nothing")] * 2
    assert {type(found[name]) for name in ("layers", "params", "meta")} == {Foreign}
