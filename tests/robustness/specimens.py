"""Small datasets in every format, and what their files say by other code than the readers'.

Each specimen is a folder of files that a reader takes for a dataset. ``judge`` decodes the same files with h5py, NumPy
or Python's own pickle, and lays out the columns with plain loops: where a damaged file is still a valid one that says
something else, a reader must say the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from mutations import edited, mutated

from torchrl_smore.data import readers
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.envs.experts.actor_file import Actor, read_actor, write_actor

GOALS = readers.Goals([0, 1], desired=[0.25, -0.5])
LENGTHS = (7, 5, 6)
Columns = dict[str, np.ndarray]


def reached(achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return (np.square(achieved.astype("f8") - goal)).sum(-1) < 1.0


@dataclass(frozen=True)
class Specimen:
    """A dataset.

    Attributes:
        name: unique.
        files: content by path below the folder.
        read: the reader, given the folder.
        judge: the columns that the files in the folder say; ``None`` where checksums cover every byte, so that only
            the data as they were are right.
        rewrap: how files whose checksums are right again come from files whose inner parts were changed.
        meta: of the store, where a checksum covers it.
        columns: the columns of what ``read`` returns.
        refused: the error of a refusal.
    """

    name: str
    files: dict[str, bytes]
    read: Callable[[Path], Any]
    judge: Callable[[Path], Columns] | None = None
    rewrap: Callable[[np.random.Generator, dict[str, bytes]], dict[str, bytes]] | None = None
    meta: dict[str, Any] | None = None
    columns: Callable[[Any], Columns] = field(default=lambda store: columns_of(store))
    refused: type[ValueError] = DatasetError


def columns_of(store: TrajectoryStore) -> Columns:
    data = store.data
    found = {key: data[key].numpy() for key in ("observation", "action", "achieved_goal", "desired_goal")}
    for key in ("observation", "achieved_goal", "reward", "terminated"):
        found[f"next {key}"] = data["next", key].numpy()
    found["start"] = store.trajectory_bounds[0].numpy()
    return found


def laid_out(episodes: list[Columns]) -> Columns:
    """Columns of episodes that hold ``observation``, ``next observation`` and so on, one row for each step."""
    kept = [episode for episode in episodes if len(episode["action"]) >= 2]
    for episode in kept:
        episode["next reward"] = reached(episode["next achieved_goal"], episode["desired_goal"])[:, None]
        last = np.arange(len(episode["action"])) == len(episode["action"]) - 1
        episode["next terminated"] = (last & episode["terminated"])[:, None]
    names = [name for name in kept[0] if name != "terminated"]
    columns = {name: np.concatenate([episode[name] for episode in kept]) for name in names}
    lengths = [len(episode["action"]) for episode in kept]
    columns["start"] = np.cumsum([0, *lengths[:-1]])
    return {name: array.astype("?" if "terminated" in name else "f4") for name, array in columns.items()}


def _as_rows(actions: np.ndarray) -> np.ndarray:
    return (actions if actions.ndim == 2 else actions[:, None]).astype("f4")


def _steps(states: Columns, action: np.ndarray, terminated: bool) -> Columns:
    """An episode from states ``[T + 1, *]`` and actions ``[T, da]``."""
    names = {"o": "observation", "ag": "achieved_goal"}
    episode = {names[key]: states[key][:-1] for key in names}
    episode |= {f"next {names[key]}": states[key][1:] for key in names}
    goal = states["g"][: len(action)]
    return episode | {"action": action, "desired_goal": goal, "terminated": np.bool_(terminated)}


def _arrays(rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """States and actions of a few episodes."""
    return {
        "states": [rng.normal(size=(n + 1, 4)).astype("f4") for n in LENGTHS],
        "actions": [rng.uniform(-1, 1, size=(n, 2)).astype("f4") for n in LENGTHS],
    }


# D4RL


def _d4rl_file(options: dict[str, Any], libver: str, next_held: bool) -> bytes:
    made = _arrays(np.random.default_rng(1))
    last = np.concatenate([np.arange(n) == n - 1 for n in LENGTHS])
    first_ends = np.arange(len(last)) == LENGTHS[0] - 1
    content = io.BytesIO()
    with h5py.File(content, "w", libver=libver) as file:
        arrays = {
            "observations": np.concatenate([states[:-1] for states in made["states"]]),
            "actions": np.concatenate(made["actions"]).astype("f8"),
            "terminals": first_ends,
            "timeouts": last & ~first_ends,
        }
        if next_held:
            arrays["next_observations"] = np.concatenate([states[1:] for states in made["states"]])
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)
    return content.getvalue()


def _judge_d4rl(folder: Path) -> Columns:
    with h5py.File(folder / "a.hdf5") as file:
        wanted = ("observations", "actions", "terminals", "timeouts", "next_observations")
        held = {name: file[name][()] for name in set(file).intersection(wanted)}
    terminal, timeout = (
        held[name].reshape(-1).view("u1") if held[name].dtype == bool else held[name].reshape(-1)
        for name in ("terminals", "timeouts")
    )
    episodes, first = [], 0
    for row in range(len(terminal)):
        if not (terminal[row] or timeout[row] or row == len(terminal) - 1):
            continue
        states = held["observations"][first : row + 1].astype("f4")
        after = held["next_observations"][first : row + 1].astype("f4") if "next_observations" in held else states[1:]
        states = states[: len(after)]
        episodes.append(
            {
                "observation": states,
                "next observation": after,
                "achieved_goal": states[:, :2],
                "next achieved_goal": after[:, :2],
                "action": _as_rows(held["actions"][first : row + 1][: len(after)]),
                "desired_goal": np.tile(np.float32([0.25, -0.5]), (len(after), 1)),
                "terminated": np.bool_(terminal[row] and "next_observations" in held),
            }
        )
        first = row + 1
    return laid_out(episodes)


def _d4rl(name: str, libver: str = "earliest", next_held: bool = True, **options: Any) -> Specimen:
    def read(folder: Path) -> TrajectoryStore:
        return readers.d4rl.read(folder / "a.hdf5", reached=reached, goals=GOALS)

    return Specimen(f"d4rl, {name}", {"a.hdf5": _d4rl_file(options, libver, next_held)}, read, _judge_d4rl)


# Minari

_MINARI_KEYS = {"observation": "o", "achieved_goal": "ag", "desired_goal": "g"}


def _minari_files(options: dict[str, Any]) -> dict[str, bytes]:
    made = _arrays(np.random.default_rng(2))
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for number, (states, actions) in enumerate(zip(made["states"], made["actions"])):
            group = file.create_group(f"episode_{number}")
            parts = {"observation": states, "achieved_goal": states[:, :2], "desired_goal": states[:, 2:]}
            for key, array in parts.items():
                group.create_dataset(f"observations/{key}", data=array, **options)
            group.create_dataset("actions", data=actions, **options)
            ended = np.arange(len(actions)) == len(actions) - 1
            group.create_dataset("terminations", data=ended & (number == 1), **options)
    box = {key: {"type": "Box", "shape": [4 if key == "observation" else 2]} for key in _MINARI_KEYS}
    metadata = {
        "total_episodes": len(LENGTHS),
        "total_steps": sum(LENGTHS),
        "data_format": "hdf5",
        "observation_space": json.dumps({"type": "Dict", "subspaces": box}),
    }
    return {"data/main_data.hdf5": content.getvalue(), "data/metadata.json": json.dumps(metadata).encode()}


def _judge_minari(folder: Path) -> Columns:
    episodes = []
    with h5py.File(folder / "data/main_data.hdf5") as file:
        names = [name for name in file if name.startswith("episode_")]
        for name in sorted(names, key=lambda name: int(name.removeprefix("episode_"))):
            group = file[name]
            states = {short: group[f"observations/{key}"][()] for key, short in _MINARI_KEYS.items()}
            ended = group["terminations"][()]
            terminated = (ended.view("u1") if ended.dtype == bool else ended)[-1] != 0
            episodes.append(_steps(states, group["actions"][()], terminated))
    return laid_out(episodes)


def _edited_json(rng: np.random.Generator, files: dict[str, bytes]) -> dict[str, bytes]:
    content = json.loads(files["data/metadata.json"])
    return files | {"data/metadata.json": json.dumps(edited(rng, content)).encode()}


def _minari(name: str, **options: Any) -> Specimen:
    def read(folder: Path) -> TrajectoryStore:
        return readers.minari.read(folder, reached=reached)

    return Specimen(f"minari, {name}", _minari_files(options), read, _judge_minari, _edited_json)


# OGBench


def _ogbench_arrays() -> Columns:
    made = _arrays(np.random.default_rng(3))
    actions = [np.concatenate([part, np.zeros((1, 2), "f4")]) for part in made["actions"]]
    ends = [np.arange(n + 1) == n for n in LENGTHS]
    return {
        "observations": np.concatenate(made["states"]),
        "actions": np.concatenate(actions),
        "terminals": np.concatenate(ends),
    }


def _npz(save: Callable[..., Any], arrays: Columns) -> bytes:
    content = io.BytesIO()
    save(content, **arrays)
    return content.getvalue()


def _judge_ogbench(folder: Path) -> Columns:
    with np.load(folder / "a.npz", allow_pickle=False) as archive:
        held = {name: archive[name] for name in ("observations", "actions", "terminals")}
    ends = held["terminals"].reshape(-1)
    episodes, first = [], 0
    for row in range(len(ends)):
        if ends[row]:
            states = held["observations"][first : row + 1].astype("f4")
            goal = np.tile(states[-1], (len(states), 1))
            actions = _as_rows(held["actions"][first:row])
            episodes.append(_steps({"o": states, "ag": states, "g": goal}, actions, False))
            first = row + 1
    return laid_out(episodes)


def _rezipped(rng: np.random.Generator, files: dict[str, bytes]) -> dict[str, bytes]:
    """The archive with a damaged array in it, and a checksum that agrees with the damage."""
    (file,) = files
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files[file])) as archive, zipfile.ZipFile(content, "w") as changed:
        names = archive.namelist()
        chosen = names[int(rng.integers(len(names)))]
        for name in names:
            part = archive.read(name)
            changed.writestr(name, mutated(rng, part, [part], header=128) if name == chosen else part)
    return {file: content.getvalue()}


def _ogbench(name: str, save: Callable[..., Any]) -> Specimen:
    def read(folder: Path) -> TrajectoryStore:
        return readers.ogbench.read(folder / "a.npz", reached=reached)

    return Specimen(f"ogbench, {name}", {"a.npz": _npz(save, _ogbench_arrays())}, read, _judge_ogbench, _rezipped)


# WGCSL


def wgcsl_arrays() -> Columns:
    rng = np.random.default_rng(4)
    return {
        "o": rng.normal(size=(3, 7, 4)),
        "ag": rng.normal(size=(3, 7, 2)).astype("f4"),
        "u": np.asfortranarray(rng.uniform(-1, 1, size=(3, 6, 2))),
        "g": rng.normal(size=(3, 6, 2)),
    }


class _NumpyOnly(pickle.Unpickler):
    """Python's own unpickler with NumPy's own functions, none of which runs what a file says."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.removeprefix("numpy.").removeprefix("_"), name) not in {
            ("core.multiarray", "_reconstruct"),
            ("core.multiarray", "scalar"),
            ("core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("codecs", "encode"),
        }:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _judge_wgcsl(folder: Path) -> Columns:
    with open(folder / "buffer.pkl", "rb") as stream:
        held = _NumpyOnly(stream, encoding="latin1").load()
    held = {key: held[key].astype("f4") for key in ("o", "ag", "u", "g")}
    held |= {key: held[key].clip(-200, 200) for key in ("o", "ag", "g")}
    episodes = [
        _steps({key: held[key][number] for key in ("o", "ag", "g")}, held["u"][number], False)
        for number in range(len(held["u"]))
    ]
    return laid_out(episodes)


def _wgcsl(protocol: int) -> Specimen:
    def read(folder: Path) -> TrajectoryStore:
        return readers.wgcsl.read(folder / "buffer.pkl", reached=reached)

    content = pickle.dumps(wgcsl_arrays() | {"extra": [1.5, ("a", None)], "n": np.int64(3)}, protocol=protocol)
    return Specimen(f"wgcsl, protocol {protocol}", {"buffer.pkl": content}, read, _judge_wgcsl)


# tables


TABLE = readers.TableColumns(("x0", "x1"), ("u0", "u1"), ("x0", "x1"), "episode", ("g0", "g1"), "ended")


def table_columns() -> dict[str, list[Any]]:
    """Columns of a table, by name."""
    made = _arrays(np.random.default_rng(6))
    columns: dict[str, list[Any]] = {name: [] for name in ("episode", "x0", "x1", "u0", "u1", "g0", "g1", "ended")}
    for number, (states, actions) in enumerate(zip(made["states"], made["actions"])):
        padded = np.concatenate([actions, np.zeros((1, 2), "f4")])
        last = np.arange(len(states)) == len(states) - 1
        rows = np.concatenate([states[:, :2], padded, states[:, 2:], (last & (number == 1))[:, None]], 1)
        for name, column in zip(list(columns)[1:], rows.T.astype("f8").round(4)):
            columns[name] += column.tolist()
        columns["episode"] += [f"run {number}"] * len(rows)
    return columns


def _csv_bytes() -> bytes:
    columns = table_columns()
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
    return ("\n".join(lines) + "\n").encode()


def _parquet_bytes(**options: Any) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table_columns()), content, **options)
    return content.getvalue()


def _csv_cells(path: Path) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    cells: dict[str, list[Any]] = {name: [float(row[name] or "nan") for row in rows] for name in TABLE_NUMBERS}
    return cells | {"episode": [row["episode"] for row in rows]}


def _parquet_cells(path: Path) -> dict[str, list[Any]]:
    table = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes()))
    return {name: [np.nan if cell is None else cell for cell in table[name].to_pylist()] for name in table.column_names}


TABLE_NUMBERS = ("x0", "x1", "u0", "u1", "g0", "g1", "ended")


def _table(name: str, file: str, content: bytes, cells: Callable[[Path], dict[str, list[Any]]]) -> Specimen:
    def read(folder: Path) -> TrajectoryStore:
        return readers.csv.read(folder / file, reached=reached, columns=TABLE)

    def judge(folder: Path) -> Columns:
        found = cells(folder / file)
        numbers = {key: np.array(found[key], "f8").astype("f4") for key in TABLE_NUMBERS}
        episodes, first = [], 0
        for row, episode in enumerate(found["episode"]):
            if row + 1 < len(found["episode"]) and found["episode"][row + 1] == episode:
                continue
            part = slice(first, row + 1)
            states, actions, goals = (
                np.stack([numbers[f"{letter}{axis}"][part] for axis in (0, 1)], 1) for letter in "xug"
            )
            laid = _steps({"o": states, "ag": states, "g": goals}, actions[:-1], numbers["ended"][row] == 1.0)
            episodes.append(laid)
            first = row + 1
        return laid_out(episodes)

    return Specimen(name, {file: content}, read, judge)


# actors


def _actor_columns(actor: Actor) -> Columns:
    found = {
        f"{name} {number}": layer[place] for number, layer in enumerate(actor.layers) for place, name in enumerate("wb")
    }
    found |= {"mean": actor.mean, "std": actor.std} if actor.mean is not None else {}
    said = (actor.activation, actor.output, actor.goal_dim, actor.clip)
    return found | {"settings": np.array([str(each) for each in said])}


def _judge_actor(folder: Path) -> Columns:
    with np.load(folder / "expert.npz", allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    found = {f"{name[0]} {name.split('_')[1]}": held[name] for name in held if name.startswith(("weight_", "bias_"))}
    found |= {name: held[name] for name in ("mean", "std") if name in held}
    default = {"activation": "relu", "output": "tanh", "goal_dim": 0, "clip": np.inf}
    said = {name: held[name].item() if name in held else value for name, value in default.items()}
    said["clip"] = float(said["clip"])
    return found | {"settings": np.array([str(each) for each in said.values()])}


def _actor(folder: Path) -> Specimen:
    rng = np.random.default_rng(7)
    layers = tuple((rng.normal(size=(8, n)).astype("f4"), rng.normal(size=8).astype("f4")) for n in (6, 8))
    mean, std = rng.normal(size=6).astype("f4"), rng.uniform(0.5, 2, 6).astype("f4")
    path = folder / "actor" / "expert.npz"
    path.parent.mkdir(parents=True)
    write_actor(path, Actor(layers, goal_dim=2, mean=mean, std=std, clip=5.0))

    def read(folder: Path) -> Actor:
        return read_actor(folder / "expert.npz")

    return Specimen(
        "actor",
        {"expert.npz": path.read_bytes()},
        read,
        _judge_actor,
        _rezipped,
        columns=_actor_columns,
        refused=ValueError,
    )


# the store


def _store(folder: Path) -> Specimen:
    made = _arrays(np.random.default_rng(5))
    episodes = (
        {
            "observation": states,
            "achieved_goal": states[:, :2],
            "action": actions,
            "desired_goal": states[-1, :2],
            "reward": np.arange(len(actions)) == len(actions) - 1,
        }
        for states, actions in zip(made["states"], made["actions"])
    )
    meta = {"task": "Pick", "seed": 3, "composition": [{"behaviour": "expert", "num_trajectories": 3}]}
    TrajectoryStore.from_episodes(episodes, meta).save(folder / "store")
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }

    def read(folder: Path) -> TrajectoryStore:
        return TrajectoryStore.load(folder / "store")

    return Specimen("store", files, read, None, _resigned, meta)


def _resigned(rng: np.random.Generator, files: dict[str, bytes]) -> dict[str, bytes]:
    """A manifest with a damaged part and a checksum that agrees with the damage."""
    content = edited(rng, json.loads(files["store/meta.json"]))
    content.pop("manifest_sha256", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return files | {"store/meta.json": json.dumps(content | {"manifest_sha256": digest}).encode()}


def specimens(folder: Path) -> list[Specimen]:
    """All of them; ``folder`` is empty and takes what must be written to disk to be made."""
    return [
        _d4rl("contiguous"),
        _d4rl("without next_observations", next_held=False),
        _d4rl("chunked", chunks=True),
        _d4rl("gzip", compression="gzip"),
        _d4rl("gzip, shuffle, fletcher32", compression="gzip", shuffle=True, fletcher32=True),
        _d4rl("gzip, new layout", libver="latest", compression="gzip"),
        _minari("contiguous"),
        _minari("gzip", compression="gzip"),
        _ogbench("stored", np.savez),
        _ogbench("deflated", np.savez_compressed),
        *map(_wgcsl, (0, 2, 4, 5)),
        _table("csv", "a.csv", _csv_bytes(), _csv_cells),
        _table("parquet", "a.parquet", _parquet_bytes(), _parquet_cells),
        _table("parquet, checksums", "a.parquet", _parquet_bytes(write_page_checksum=True), _parquet_cells),
        _store(folder),
        _actor(folder),
    ]
