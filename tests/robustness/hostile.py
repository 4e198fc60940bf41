"""Files and folders that were made to keep a reader busy, to take its memory, to crash it, or to show it other things.

Each construction writes to an empty folder and returns the call that must be refused.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from specimens import GOALS, TABLE, TABLE_NUMBERS, reached, wgcsl_arrays

from torchrl_smore.data import readers
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.envs.experts.actor_file import read_actor

Read = Callable[[], Any]
Construction = Callable[[np.random.Generator, Path], Read]
CONSTRUCTIONS: dict[str, Construction] = {}


def construct(name: str, rng: np.random.Generator, folder: Path) -> Read:
    """Writes a construction of :data:`CONSTRUCTIONS`; returns what reads it."""
    return CONSTRUCTIONS[name](rng, folder)


def _add(name: str) -> Callable[[Construction], Construction]:
    def add(construction: Construction) -> Construction:
        CONSTRUCTIONS[name] = construction
        return construction

    return add


# HDF5


def _d4rl(folder: Path, observations: Callable[[h5py.File, np.ndarray], None], rows: int = 16) -> Read:
    path = folder / "a.hdf5"
    with h5py.File(path, "w") as file:
        observations(file, np.random.default_rng(0).normal(size=(rows, 4)).astype("f4"))
        file["actions"] = np.zeros((rows, 2), "f4")
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 8 == 7
    return lambda: readers.d4rl.read(path, reached=reached, goals=GOALS)


def _with_chunk(content: Callable[[np.random.Generator, bytes], bytes], mask: int = 0, **options: Any) -> Construction:
    """Observations whose second chunk holds something else than what belongs there."""

    def construction(rng: np.random.Generator, folder: Path) -> Read:
        def observations(file: h5py.File, array: np.ndarray) -> None:
            dataset = file.create_dataset("observations", data=array, chunks=(8, 4), **options)
            dataset.id.write_direct_chunk((8, 0), content(rng, array[8:].tobytes()), mask)

        return _d4rl(folder, observations)

    return construction


def _shorter(rng: np.random.Generator, right: bytes) -> bytes:
    return right[: int(rng.integers(len(right)))]


_GZIP = {"compression": "gzip"}
CONSTRUCTIONS |= {
    "a gzip chunk that inflates to less": _with_chunk(lambda rng, right: zlib.compress(_shorter(rng, right)), **_GZIP),
    "a gzip chunk that inflates to nothing": _with_chunk(lambda rng, right: zlib.compress(b""), **_GZIP),
    "a gzip chunk that inflates to more": _with_chunk(
        lambda rng, right: zlib.compress(right + bytes(int(rng.integers(1, 9)))), **_GZIP
    ),
    "a gzip bomb in a chunk": _with_chunk(lambda rng, right: zlib.compress(bytes(1 << 26), 1), **_GZIP),
    "a gzip chunk without its end": _with_chunk(
        lambda rng, right: zlib.compress(right)[: -int(rng.integers(1, 9))], **_GZIP
    ),
    "a gzip chunk with more behind it": _with_chunk(
        lambda rng, right: zlib.compress(right) + rng.bytes(int(rng.integers(1, 9))), **_GZIP
    ),
    "a short chunk that skips its filter": _with_chunk(_shorter, mask=1, **_GZIP),
    "a gzip chunk that says it skips its filter": _with_chunk(lambda rng, right: zlib.compress(right), mask=1, **_GZIP),
    "a mask of filters that are not there": _with_chunk(lambda rng, right: zlib.compress(right), mask=1 << 7, **_GZIP),
    "a short chunk with a checksum": _with_chunk(_shorter, fletcher32=True),
    "a chunk with a wrong checksum": _with_chunk(lambda rng, right: right + rng.bytes(4), fletcher32=True),
    "a chunk with a checksum and nothing else": _with_chunk(lambda rng, right: bytes(4), fletcher32=True),
}


@_add("rows never written, at either end")
def _unwritten(rng: np.random.Generator, folder: Path) -> Read:
    def observations(file: h5py.File, array: np.ndarray) -> None:
        dataset = file.create_dataset("observations", array.shape, "f4", chunks=(int(rng.integers(1, 6)), 3))
        first = int(rng.integers(0, 2)) * 8
        dataset[first : first + 8] = array[:8]

    return _d4rl(folder, observations)


@_add("columns never written, hidden by chunks that are larger than the array")
def _unwritten_corner(rng: np.random.Generator, folder: Path) -> Read:
    def observations(file: h5py.File, array: np.ndarray) -> None:
        dataset = file.create_dataset("observations", array.shape, "f4", chunks=(16, 3), maxshape=(None, None))
        dataset[:, :3] = array[:, :3]

    return _d4rl(folder, observations)


@_add("a chunk larger than any array")
def _large_chunk(rng: np.random.Generator, folder: Path) -> Read:
    def observations(file: h5py.File, array: np.ndarray) -> None:
        chunk = (1 << int(rng.integers(24, 27)), 4)
        dataset = file.create_dataset("observations", array.shape, "f4", chunks=chunk, maxshape=(None, 4), **_GZIP)
        dataset.id.write_direct_chunk((0, 0), zlib.compress(array.tobytes()))

    return _d4rl(folder, observations)


@_add("a declared size of terabytes")
def _declared(rng: np.random.Generator, folder: Path) -> Read:
    path, rows = folder / "a.hdf5", 10 ** int(rng.integers(9, 14))
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (rows, 4)), ("actions", (rows, 2)), ("terminals", (rows,))):
            file.create_dataset(name, shape, "f4", chunks=(1000, *shape[1:]), **(_GZIP if rng.random() < 0.5 else {}))
    return lambda: readers.d4rl.read(path, reached=reached, goals=GOALS, horizon=10)


@_add("numbers of an odd format")
def _odd_type(rng: np.random.Generator, folder: Path) -> Read:
    def observations(file: h5py.File, array: np.ndarray) -> None:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_ebias(100 + int(rng.integers(20)))
        space = h5py.h5s.create_simple(array.shape)
        h5py.h5d.create(file.id, b"observations", kind, space).write(space, space, array)

    return _d4rl(folder, observations)


@_add("another compression")
def _lzf(rng: np.random.Generator, folder: Path) -> Read:
    return _d4rl(
        folder, lambda file, array: file.create_dataset("observations", data=array, compression="lzf", chunks=(8, 4))
    )


# Minari


def _minari(folder: Path, change: Callable[[h5py.File], None], metadata: str | None = None) -> Read:
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number in range(3):
            group = file.create_group(f"episode_{number}")
            group["observations"] = rng.normal(size=(6, 4)).astype("f4")
            group["actions"] = rng.normal(size=(5, 2)).astype("f4")
            group["terminations"] = np.zeros(5, bool)
        change(file)
    if metadata is not None:
        (data / "metadata.json").write_text(metadata)
    return lambda: readers.minari.read(folder, reached=reached, goals=GOALS)


@_add("a group that contains itself many times")
def _cycle(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        del file["episode_0/observations"]
        group = file.create_group("episode_0/observations")
        for number in range(int(rng.integers(2, 200))):
            group[f"part_{number}"] = group

    return _minari(folder, change)


@_add("two groups that contain each other")
def _mutual(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        del file["episode_0/observations"]
        outer = file.create_group("episode_0/observations")
        inner = outer.create_group("a")
        for number in range(int(rng.integers(1, 50))):
            inner[f"back_{number}"] = outer

    return _minari(folder, change)


@_add("groups that share their parts, level by level")
def _lattice(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        del file["episode_0/observations"]
        below: Any = file.create_dataset("leaf", data=np.zeros((6, 1), "f4"))
        for level in range(8):
            group = file.create_group(f"level_{level}")
            for number in range(int(rng.integers(4, 30))):
                group[f"part_{number}"] = below
            below = group
        file["episode_0/observations"] = below

    return _minari(folder, change)


@_add("one episode under many names")
def _same_episode(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        for number in range(3, 3 + int(rng.integers(1, 5000))):
            file[f"episode_{number}"] = file["episode_0"]

    return _minari(folder, change)


@_add("episodes that share their arrays")
def _shared_arrays(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        first = file["episode_0"]
        rows = 10**6
        for name, width in (("observations", 4), ("actions", 2), ("terminations", None)):
            del first[name]
            shape = (rows + (name == "observations"), width)[: 2 if width else 1]
            first.create_dataset(name, shape, "f4", chunks=(rows + 1, *shape[1:]), maxshape=(None, *shape[1:]), **_GZIP)
            content = zlib.compress(bytes(4 * (rows + 1) * (width or 1)))
            first[name].id.write_direct_chunk((0,) * len(shape), content)
        for number in range(1, 300):
            group = file.require_group(f"episode_{number}")
            for name in first:
                if name in group:
                    del group[name]
                group[name] = first[name]

    return _minari(folder, change)


@_add("deep metadata")
def _deep_metadata(rng: np.random.Generator, folder: Path) -> Read:
    depth = int(rng.integers(2000, 10**6))
    return _minari(folder, lambda file: None, str(rng.choice(["[", '{"a":'])) * depth)


@_add("a deep observation space")
def _deep_space(rng: np.random.Generator, folder: Path) -> Read:
    space = '{"subspaces":' * int(rng.integers(2000, 10**5))
    return _minari(folder, lambda file: None, json.dumps({"observation_space": space}))


@_add("totals that are no numbers")
def _totals(rng: np.random.Generator, folder: Path) -> Read:
    values = [None, True, "3", [3], {"a": 3}, 3.5, 10**4000, -3, [[3] * 1000] * 100]
    name = str(rng.choice(["total_episodes", "total_steps"]))
    return _minari(folder, lambda file: None, json.dumps({name: values[int(rng.integers(len(values)))]}))


@_add("totals that are arrays in attributes")
def _array_totals(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        value = [np.arange(3), "x", np.float64(3), h5py.Empty("f4"), np.bool_(True)][int(rng.integers(5))]
        file.attrs[str(rng.choice(["total_episodes", "total_steps"]))] = value

    return _minari(folder, change)


@_add("a number of an episode without end")
def _long_number(rng: np.random.Generator, folder: Path) -> Read:
    def change(file: h5py.File) -> None:
        for number in range(3):
            file.move(f"episode_{number}", f"episode_{number}" + "9" * int(rng.integers(20, 6000)))

    return _minari(folder, change)


# what is no file


def _irregular(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            # the path of a socket is short
            here = os.getcwd()
            os.chdir(path.parent)
            made.bind(path.name)
            os.chdir(here)
    else:
        path.symlink_to(path)


def _in_place_of(name: str, kind: str) -> Construction:
    def construction(rng: np.random.Generator, folder: Path) -> Read:
        if name == "main_data.hdf5" or name == "metadata.json":
            read = _minari(folder, lambda file: None, "{}")
            _irregular(kind, folder / "data" / name)
            return read
        if name == "additional_data_0.hdf5":

            def link(file: h5py.File) -> None:
                del file["episode_1"]
                file["episode_1"] = h5py.ExternalLink(name, "/episode_0")

            read = _minari(folder, link)
            _irregular(kind, folder / "data" / name)
            return read
        if name in ("meta.json", "action.memmap"):
            episode = {
                "observation": np.zeros((3, 4)),
                "achieved_goal": np.zeros((3, 2)),
                "action": np.zeros((2, 2)),
                "desired_goal": np.zeros(2),
                "reward": np.zeros(2),
            }
            TrajectoryStore.from_episodes([episode]).save(folder / "store")
            _irregular(kind, folder / "store" / ("" if name == "meta.json" else "data") / name)
            return lambda: TrajectoryStore.load(folder / "store")
        _irregular(kind, folder / name)
        options: dict[str, Any] = {} if name.endswith("pkl") else {"goals": GOALS}
        return lambda: readers.read(folder / name, reached=reached, **options)

    return construction


for _name in (
    *("a.hdf5", "a.npz", "buffer.pkl"),
    *("main_data.hdf5", "metadata.json", "additional_data_0.hdf5", "meta.json", "action.memmap"),
):
    for _kind in ("pipe", "endless device", "folder", "socket", "link to itself"):
        if (_name, _kind) != ("metadata.json", "link to itself"):  # the same as none, which is no fault
            CONSTRUCTIONS[f"{_kind} in place of {_name}"] = _in_place_of(_name, _kind)


# pickles


def _pickle(content: Callable[[np.random.Generator], bytes]) -> Construction:
    def construction(rng: np.random.Generator, folder: Path) -> Read:
        path = folder / "buffer.pkl"
        path.write_bytes(content(rng))
        return lambda: readers.wgcsl.read(path, reached=reached)

    return construction


def _number(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high))


_DTYPE = b"cnumpy\ndtype\n(Vf8\ntR"
_BUFFER = b"cnumpy.core.numeric\n_frombuffer\n"
_EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


def _text(length: int) -> bytes:
    return b"X" + struct.pack("<I", length) + b"x" * length


CONSTRUCTIONS |= {
    # each tuple holds the one before twice: its hash takes 2**n steps
    "a key of nested tuples": _pickle(
        lambda rng: b"\x80\x02}K\x00" + b"q\x00h\x00\x86" * _number(rng, 30, 80) + b"K\x01s."
    ),
    "a set of nested tuples": _pickle(
        lambda rng: b"\x80\x04\x8f(K\x00" + b"q\x00h\x00\x86" * _number(rng, 30, 80) + b"\x90."
    ),
    "a frozen set of nested tuples": _pickle(
        lambda rng: b"\x80\x04(K\x00" + b"q\x00h\x00\x86" * _number(rng, 30, 80) + b"\x91."
    ),
    "a deep key": _pickle(lambda rng: b"\x80\x02})" + b"\x85" * _number(rng, 10**5, 10**6) + b"K\x01s."),
    "a deep tuple": _pickle(lambda rng: b"\x80\x02)" + b"\x85" * _number(rng, 10**5, 10**6) + b"."),
    "a deep list": _pickle(lambda rng: b"\x80\x02" + b"](" * _number(rng, 10**5, 10**6) + b"."),
    "a list that holds itself": _pickle(lambda rng: b"\x80\x02]q\x00h\x00a."),
    "a memo of four gigabytes": _pickle(lambda rng: b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"."),
    "a memo number without end": _pickle(lambda rng: b"Np" + b"9" * _number(rng, 30, 10**6) + b"\n."),
    "a value of the memo that is not there": _pickle(lambda rng: b"\x80\x02j" + rng.bytes(4) + b"."),
    "a name of many megabytes": _pickle(lambda rng: b"\x80\x02}" + _text(_number(rng, 10**6, 10**7)) + b"K\x01s."),
    "a dtype of many megabytes": _pickle(
        lambda rng: b"\x80\x02cnumpy\ndtype\n" + _text(_number(rng, 10**6, 10**7)) + b"\x85R."
    ),
    "a state that doubles in every tuple": _pickle(
        lambda rng: b"\x80\x02" + _DTYPE + b"Va\n" + b"q\x00h\x00\x86" * _number(rng, 20, 40) + b"b."
    ),
    "an encoding that doubles in every tuple": _pickle(
        lambda rng: b"\x80\x02c_codecs\nencode\nVa\nVa\n" + b"q\x00h\x00\x86" * _number(rng, 20, 40) + b"\x86R."
    ),
    "a long integer": _pickle(lambda rng: b"\x80\x02\x8a\xff" + rng.bytes(254) + b"\x7f."),
    "a longer integer": _pickle(lambda rng: b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."),
    "an integer in digits": _pickle(lambda rng: b"I" + b"9" * _number(rng, 25, 10**6) + b"\n."),
    "a long integer in digits": _pickle(lambda rng: b"L" + b"9" * _number(rng, 25, 10**6) + b"L\n."),
    "a shape whose product is endless": _pickle(
        lambda rng: (
            b"\x80\x02"
            + _BUFFER
            + b"(C\x08"
            + bytes(8)
            + _DTYPE
            + b"("
            + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f" * _number(rng, 3, 10**4)
            + b"tVC\ntR."
        )
    ),
    "a shape of many dimensions": _pickle(
        lambda rng: (
            b"\x80\x02"
            + _BUFFER
            + b"(C\x08"
            + bytes(8)
            + _DTYPE
            + b"("
            + b"K\x01" * _number(rng, 17, 10**5)
            + b"tVC\ntR."
        )
    ),
    "more instructions than anyone needs": _pickle(lambda rng: b"\x80\x02(" + b"N" * 3 * 10**6 + b"t."),
    "marks and nothing else": _pickle(lambda rng: b"(" * _number(rng, 1, 10**6) + b"."),
    "lists and nothing else": _pickle(lambda rng: b"]" * 3 * 10**6 + b"."),
    "dictionaries and nothing else": _pickle(lambda rng: b"}" * 3 * 10**6 + b"."),
    "bytes that are not there": _pickle(lambda rng: b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"x."),
    "text that is not there": _pickle(lambda rng: b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x."),
    "text of negative length": _pickle(lambda rng: b"\x80\x02T" + struct.pack("<i", -_number(rng, 1, 2**31)) + b"x."),
    "a state for an array of another kind": _pickle(
        lambda rng: b"\x80\x04" + _EMPTY_ARRAY + [b"N", b")", b"K\x01", b"(K\x01t", b"]"][_number(rng, 0, 5)] + b"b."
    ),
    "a persistent name": _pickle(lambda rng: b"\x80\x02K\x01Q."),
    "an extension": _pickle(lambda rng: b"\x80\x02\x82\x01."),
    "a buffer from elsewhere": _pickle(lambda rng: b"\x80\x05\x97."),
    "the end without a beginning": _pickle(lambda rng: b"."),
    "nothing": _pickle(lambda rng: b""),
    "noise": _pickle(lambda rng: rng.bytes(_number(rng, 1, 10**5))),
}


@_add("arrays without a column")
def _no_column(rng: np.random.Generator, folder: Path) -> Read:
    arrays = wgcsl_arrays()
    name = str(rng.choice(["o", "ag", "u", "g"]))
    for each in ("ag", "g") if name in ("ag", "g") else (name,):
        arrays[each] = arrays[each][:, :, :0]
    (folder / "buffer.pkl").write_bytes(pickle.dumps(arrays, protocol=int(rng.integers(3, 6))))
    return lambda: readers.wgcsl.read(folder / "buffer.pkl", reached=reached)


# npz


def _npz(change: Callable[[np.random.Generator, zipfile.ZipFile], None]) -> Construction:
    def construction(rng: np.random.Generator, folder: Path) -> Read:
        path = folder / "a.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            change(rng, archive)
        return lambda: readers.ogbench.read(path, reached=reached, goals=GOALS)

    return construction


def _header(text: str) -> bytes:
    content = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(content), 65535)) + content


def _with_header(text: Callable[[np.random.Generator], str]) -> Construction:
    return _npz(lambda rng, archive: archive.writestr("observations.npy", _header(text(rng)) + bytes(64)))


def _bomb(method: int) -> Construction:
    def change(rng: np.random.Generator, archive: zipfile.ZipFile) -> None:
        rows = 10**6
        header = _header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 4)}}\n")
        archive.writestr("observations.npy", header + bytes(16 * rows), method)
        archive.writestr("actions.npy", b"")

    return _npz(change)


CONSTRUCTIONS |= {
    "a deep header": _with_header(lambda rng: "(" * _number(rng, 100, 9000)),
    "a header of endless digits": _with_header(
        lambda rng: f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * _number(rng, 20, 9000)}, 4)}}\n"
    ),
    "a header of many dimensions": _with_header(
        lambda rng: f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * _number(rng, 30, 4000)})}}\n"
    ),
    "a header of negative size": _with_header(
        lambda rng: "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4)}\n"
    ),
    "a header of objects": _with_header(lambda rng: "{'descr': '|O', 'fortran_order': False, 'shape': (8,)}\n"),
    "a header that is code": _with_header(lambda rng: "__import__('os').abort()"),
    "a header of noise": _npz(lambda rng, archive: archive.writestr("observations.npy", rng.bytes(200))),
    "an array compressed by bzip2": _bomb(zipfile.ZIP_BZIP2),
    "an array compressed by lzma": _bomb(zipfile.ZIP_LZMA),
    "an archive of nothing": _npz(lambda rng, archive: None),
    "many names and no array": _npz(
        lambda rng, archive: [archive.writestr(f"{number}.npy", b"") for number in range(_number(rng, 1, 3000))]
    ),
}


# tables


def _csv(content: Callable[[np.random.Generator], str]) -> Construction:
    def construction(rng: np.random.Generator, folder: Path) -> Read:
        path = folder / "a.csv"
        path.write_text(content(rng), newline="")
        return lambda: readers.csv.read(path, reached=reached, columns=TABLE)

    return construction


def _rows(names: list[str], **changed: Any) -> dict[str, list[Any]]:
    """Columns of a table that is one only up to the last cell of ``ended``, which is looked at last."""
    columns = dict.fromkeys(TABLE_NUMBERS, [0.0] * len(names)) | {"episode": names}
    return columns | {"ended": [0.0] * (len(names) - 1) + [0.5]} | changed


def _csv_text(columns: dict[str, list[Any]]) -> str:
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))])


CONSTRUCTIONS |= {
    "one long name among many rows": _csv(
        lambda rng: _csv_text(_rows(["x" * _number(rng, 10**5, 131_000), *["run"] * 20_000]))
    ),
    "a header of a million names": _csv(lambda rng: ",".join(map(str, range(_number(rng, 5 * 10**5, 10**6))))),
    "a header of long names": _csv(lambda rng: ",".join("x" * 10**5 + str(n) for n in range(_number(rng, 10, 100)))),
    "a line without end": _csv(lambda rng: "x" * _number(rng, 10**6, 2 * 10**7)),
    "a quotation without end": _csv(lambda rng: _csv_text(_rows(["run"] * 9)) + '\n"' + "0,\n" * 10**6),
    "a table of NULs": _csv(lambda rng: "\0" * _number(rng, 1, 10**6)),
    "numbers of many digits": _csv(lambda rng: _csv_text(_rows(["run"] * 9, x0=["9" * 10**5] * 9))),
    "a table of nothing": _csv(lambda rng: ",".join(_rows([]))),
}


def _parquet(make: Callable[[np.random.Generator], pyarrow.Table]) -> Construction:
    def construction(rng: np.random.Generator, folder: Path) -> Read:
        path = folder / "a.parquet"
        pyarrow.parquet.write_table(make(rng), path)
        return lambda: readers.csv.read(path, reached=reached, columns=TABLE)

    return construction


def _constant(rng: np.random.Generator, rows: int, name: str) -> pyarrow.Table:
    """So many rows of one value and one name, each written once."""
    numbers = {key: pyarrow.array(np.full(rows, 0.5)) for key in TABLE_NUMBERS}
    names = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name])
    return pyarrow.table(numbers | {"episode": names})


CONSTRUCTIONS |= {
    "millions of rows in some kilobytes": _parquet(
        lambda rng: _constant(rng, _number(rng, 2 * 10**6, 3 * 10**6), "run")
    ),
    "a long name in every row": _parquet(lambda rng: _constant(rng, 10**5, "x" * _number(rng, 10**5, 10**6))),
    "columns of text": _parquet(
        lambda rng: pyarrow.table(_rows(["run"] * 9, **{str(rng.choice(TABLE_NUMBERS)): ["0"] * 9}))
    ),
    "columns of lists": _parquet(
        lambda rng: pyarrow.table(_rows(["run"] * 9, **{str(rng.choice(TABLE_NUMBERS)): [[0.0]] * 9}))
    ),
}


# actors, whose reader runs without torch and has ValueErrors


def _actor(change: Callable[[np.random.Generator, zipfile.ZipFile], None]) -> Construction:
    def construction(rng: np.random.Generator, folder: Path) -> Read:
        path = folder / "expert.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            change(rng, archive)
        return lambda: read_actor(path)

    return construction


def _declared_layer(rng: np.random.Generator, archive: zipfile.ZipFile) -> None:
    size = _number(rng, 10**8, 10**12)
    for name in ("weight_0", "bias_0"):
        header = _header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},)}}\n")
        archive.writestr(f"{name}.npy", header + bytes(64))


def _inflated_layer(rng: np.random.Generator, archive: zipfile.ZipFile) -> None:
    rows = _number(rng, 10**7, 3 * 10**7)
    with archive.open("weight_0.npy", "w") as member:
        member.write(_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 8)}}\n"))
        for _ in range(rows // 10**6):
            member.write(bytes(32 * 10**6))


ACTORS = {
    "an actor that declares gigabytes": _actor(_declared_layer),
    "an actor that inflates to hundreds of megabytes": _actor(_inflated_layer),
    "an actor of many names": _actor(
        lambda rng, archive: [
            archive.writestr(
                f"{'x' * 1000}{number}.npy",
                _header("{'descr': '<f4', 'fortran_order': False, 'shape': ()}\n") + bytes(4),
            )
            for number in range(_number(rng, 1, 1000))
        ]
    ),
    "an actor that is code": _actor(
        lambda rng, archive: archive.writestr("weight_0.npy", _header("__import__('os').abort()"))
    ),
    "an actor of objects": _actor(
        lambda rng, archive: archive.writestr(
            "weight_0.npy",
            _header("{'descr': '|O', 'fortran_order': False, 'shape': (8, 8)}\n") + pickle.dumps([0] * 64),
        )
    ),
}
CONSTRUCTIONS |= ACTORS
