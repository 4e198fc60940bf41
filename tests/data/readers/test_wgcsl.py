from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import threading

import numpy as np
import pytest
import torch

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers import _unpickle, wgcsl

PROTOCOLS = range(6)


def reached(achieved, goal):
    return np.linalg.norm(achieved - goal, axis=-1) < 1.0


def buffer(num_trajectories=3, steps=50, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "o": rng.normal(size=(num_trajectories, steps + 1, 5)),
        "ag": rng.normal(size=(num_trajectories, steps + 1, 2)),
        "u": rng.uniform(-1, 1, size=(num_trajectories, steps, 4)),
        "g": rng.normal(size=(num_trajectories, steps, 2)),
    }


@pytest.fixture
def write(tmp_path):
    def write(content, protocol=4):
        path = tmp_path / "buffer.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
        return path

    return write


def assert_holds(store, arrays):
    trajectories, steps, _ = arrays["u"].shape
    assert (store.num_trajectories, store.num_transitions) == (trajectories, trajectories * steps)
    for key, column in {
        "observation": arrays["o"][:, :-1],
        ("next", "observation"): arrays["o"][:, 1:],
        "achieved_goal": arrays["ag"][:, :-1],
        ("next", "achieved_goal"): arrays["ag"][:, 1:],
        "action": arrays["u"],
        "desired_goal": arrays["g"],
    }.items():
        found = store.data[key].view(trajectories, steps, -1)
        np.testing.assert_array_equal(found.numpy(), column.astype(np.float32))


@pytest.mark.parametrize("steps", [50, 49])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_published_layouts_are_read_from_every_protocol(write, protocol, steps):
    arrays = buffer(steps=steps)
    store = wgcsl.read(write(arrays, protocol), reached=reached, meta={"task": "A"})
    assert_holds(store, arrays)
    assert store.meta == {"task": "A", "source": "buffer.pkl"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(np.float32),
        lambda a: a.astype(">f8"),
        np.asfortranarray,
        lambda a: np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2),
        lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    ],
    ids=["float32", "big-endian", "fortran", "transposed", "strided"],
)
def test_every_memory_layout_and_precision_gives_the_same_numbers(write, protocol, change):
    arrays = {key: change(array.astype(np.float32).astype(np.float64)) for key, array in buffer().items()}
    assert_holds(wgcsl.read(write(arrays, protocol), reached=reached), arrays)


def test_names_of_numpy_1_are_read(write):
    content = pickle.dumps(buffer(), protocol=2)
    assert b"numpy._core" in content or b"numpy.core" in content
    for module in (b"numpy.core", b"numpy._core"):
        renamed = content.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", module)
        assert_holds(wgcsl.read(write(renamed), reached=reached), buffer())


def test_a_pickle_of_python_2_is_read(write):
    # Python 2 wrote str, here the names, the dtype and the bytes of the array, as 8-bit SHORT_BINSTRING and BINSTRING
    def text(value):
        return b"U" + bytes([len(value)]) + value

    def array(a):
        a = np.ascontiguousarray(a, dtype="<f8")
        shape = b"".join(b"J" + struct.pack("<i", size) for size in a.shape)
        dtype = (
            b"cnumpy\ndtype\n("
            + text(b"f8")
            + b"K\x00K\x01tR(K\x03"
            + text(b"<")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        raw = b"T" + struct.pack("<i", a.nbytes) + a.tobytes()
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        return empty + b"(K\x01(" + shape + b"t" + dtype + b"I00\n" + raw + b"tb"

    arrays = buffer(steps=3)
    content = b"\x80\x02}(" + b"".join(text(key.encode()) + array(value) for key, value in arrays.items()) + b"u."
    assert_holds(wgcsl.read(write(content), reached=reached), arrays)


def test_the_reward_is_one_where_the_goal_is_reached_after_the_step(write):
    arrays = buffer(num_trajectories=1, steps=3)
    arrays["g"][:] = 0.0
    arrays["ag"][0] = [[0.0, 0.0], [5.0, 0.0], [0.6, 0.6], [0.9, 0.9]]  # distances 0, 5, 0.85, 1.27
    store = wgcsl.read(write(arrays), reached=reached)
    assert store.data["next", "reward"][:, 0].tolist() == [0.0, 1.0, 0.0]
    assert store.data["next", "done"][:, 0].tolist() == [False, False, True]
    assert store.data["next", "truncated"][:, 0].tolist() == [False, False, True]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("writeable", [False, True])
def test_a_fall_earns_nothing_whatever_array_the_rule_returns_and_leaves_that_alone(write, order, writeable):
    arrays = buffer(num_trajectories=2, steps=3)
    arrays["o"][:, :, 0] = 0.0
    arrays["o"][1, 2, 0] = 1.0  # after the second step of the second trajectory
    kept = np.ones((2, 3), dtype=bool, order=order)
    kept.setflags(write=writeable)
    store = wgcsl.read(write(arrays), reached=lambda achieved, goal: kept, fallen=lambda rows: rows[:, 0] == 1.0)
    assert store.data["next", "reward"][:, 0].tolist() == [1, 1, 1, 1, 0, 1]
    assert kept.all()


def test_observations_and_goals_are_clipped_on_request_and_actions_are_not(write):
    arrays = {key: np.sign(array) * 300.0 for key, array in buffer().items()}
    clipped = wgcsl.read(write(arrays), reached=reached, clip=200.0).data
    for key in ("observation", "achieved_goal", "desired_goal"):
        assert clipped[key].abs().unique().tolist() == [200.0]
    assert clipped["action"].abs().unique().tolist() == [300.0]
    assert_holds(wgcsl.read(write(arrays), reached=reached), arrays)


def test_only_the_first_trajectories_are_kept_on_demand(write):
    arrays = buffer()
    store = wgcsl.read(write(arrays), reached=reached, max_trajectories=2)
    assert_holds(store, {key: array[:2] for key, array in arrays.items()})


def test_what_else_the_dictionary_holds_does_not_matter(write):
    arrays = buffer()
    extra = {"r": np.zeros((3, 50), dtype=bool), "gamma": 0.98, "n": np.int64(3), "notes": ["a", (1, None)]}
    assert_holds(wgcsl.read(write(arrays | extra), reached=reached), arrays)


def cut(key, index):
    return lambda arrays: arrays | {key: arrays[key][index]}


def poke(key, value):
    def change(arrays):
        arrays[key][1, 7, 0] = value
        return arrays

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: {key: arrays[key] for key in ("o", "u", "ag")},
            r"expected an array 'g', found only \['o', 'u', 'ag'\]",
        ),
        (lambda arrays: arrays | {"o": arrays["o"].tolist()}, "'o': expected an array, found list"),
        (lambda arrays: list(arrays.values()), "expected a dictionary of arrays, found list"),
        (cut("o", 0), r"expected arrays \[trajectories, time, width\], found .*'o': \[51, 5\]"),
        (cut("o", slice(2)), "'o': expected 3 trajectories of 51 rows, as 'u' has 50 steps"),
        (cut("o", np.s_[:, :50]), "'o': expected 3 trajectories of 51 rows"),
        (cut("g", np.s_[:, :49]), "'g': expected 3 trajectories of 50 rows"),
        (cut("g", np.s_[:, :, :1]), "'g': expected goals as wide as the achieved goals"),
        (lambda arrays: {key: array[:0] for key, array in arrays.items()}, "at least one trajectory"),
        (lambda arrays: buffer(steps=1), "two or more steps"),
        (cut("o", np.s_[:, :, :0]), r"expected arrays of at least one column, found .*'o': \[3, 51, 0\]"),
        (cut("u", np.s_[:, :, :0]), r"expected arrays of at least one column, found .*'u': \[3, 50, 0\]"),
        (poke("o", np.nan), r"'o': expected finite numbers, found \[nan.* in trajectory 1, row 7"),
        (poke("ag", np.inf), r"'ag': expected finite numbers, found \[inf.* in trajectory 1, row 7"),
        (poke("u", 1e300), r"'u': expected finite numbers, found \[inf.* in trajectory 1, row 7"),
        (lambda arrays: arrays | {"o": arrays["o"].astype(object)}, "refused an array of dtype 'O8'"),
        (lambda arrays: arrays | {"x": np.array(["a"])}, "refused an array of dtype 'U1'"),
        (lambda arrays: arrays | {"x": np.zeros(2, dtype=[("a", "f8")])}, "refused an array of dtype 'V8'"),
        (lambda arrays: arrays | {"o": arrays["o"] + 1j}, "refused an array of dtype 'c16'"),
        # ragged episodes come as an object array or a list of arrays
        (
            lambda arrays: arrays | {"u": [array[:n] for n, array in enumerate(arrays["u"])]},
            "'u': expected an array, found list",
        ),
    ],
)
def test_a_file_that_does_not_hold_such_a_dataset_is_a_clear_error(write, change, message):
    path = write(change(buffer()))
    with pytest.raises(DatasetError, match=message) as error:
        wgcsl.read(path, reached=reached)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_a_clear_error_with_its_cause(write, protocol, kept):
    content = pickle.dumps(buffer(), protocol=protocol)
    path = write(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"cannot read .*buffer.pkl as a pickle of arrays") as error:
        wgcsl.read(path, reached=reached)
    assert error.value.__cause__ is not None


def test_a_missing_file_and_a_file_of_another_kind_are_clear_errors(write, tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*No such file"):
        wgcsl.read(tmp_path / "none.pkl", reached=reached)
    stream = io.BytesIO()
    np.savez(stream, **buffer())
    with pytest.raises(DatasetError, match="cannot read"):
        wgcsl.read(write(stream.getvalue()), reached=reached)


@pytest.mark.parametrize(
    "rule", [lambda achieved, goal: achieved - goal, lambda achieved, goal: np.zeros(achieved.shape[:2])]
)
def test_a_rule_that_does_not_give_booleans_is_a_clear_error(write, rule):
    with pytest.raises(DatasetError, match=r"reached: expected booleans of shape \[3, 50\], found float"):
        wgcsl.read(write(buffer()), reached=rule)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"max_trajectories": 0}, "max_trajectories"), ({"clip": -1.0}, "clip")]
)
def test_arguments_out_of_range_are_refused(write, arguments, message):
    with pytest.raises(ValueError, match=message):
        wgcsl.read(write(buffer()), reached=reached, **arguments)


# hostile pickles; what they would do is to create a folder


class Call:
    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("position", ["alone", "among the arrays"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (builtins.eval, r"builtins\.eval|__builtin__\.eval"),
        (builtins.exec, r"builtins\.exec|__builtin__\.exec"),
        (np.load, r"numpy\.load"),
        (np.fromfile, r"numpy\S*\.fromfile"),
        (threading.Thread, r"threading\.Thread"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_by_name(
    write, tmp_path, monkeypatch, function, name, position, protocol
):
    monkeypatch.chdir(tmp_path)
    command = "mkdir exploded" if function is os.system else "__import__('os').mkdir('exploded')"
    bomb = Call(function, command)
    path = write(bomb if position == "alone" else buffer() | {"extra": bomb}, protocol)
    with pytest.raises(DatasetError, match=f"refused the global ({name})"):
        wgcsl.read(path, reached=reached)
    assert not (tmp_path / "exploded").exists()


def proto4_global(module, name):
    def text(value):
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray.__class__"),
        ("numpy", "dtype.__init__.__globals__"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy._core.multiarray", "_reconstruct.__globals__"),
        ("numpy", "testing"),
        ("_codecs", "decode"),
        ("_codecs", "encode.__self__"),
        ("os", "mkdir"),
        ("numpy.f2py", "os.system"),
        ("", ""),
    ],
)
def test_a_dotted_name_does_not_lead_from_an_allowed_global_to_another(write, module, name):
    with pytest.raises(DatasetError, match="refused the global"):
        wgcsl.read(write(proto4_global(module, name) + b"."), reached=reached)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # _codecs.encode with a codec that would be imported by name, or that is not latin1
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "refused the encoding 'rot13'"),
        (b"c_codecs\nencode\n(Vabc\nVzip\ntR.", "refused the encoding 'zip'"),
        # the array made of an object dtype, with raw bytes for pointers
        (b"cnumpy\ndtype\n(VO8\ntR.", "refused an array of dtype 'O8'"),
        (b"cnumpy\ndtype\n(Vf8,O\ntR.", "refused an array of dtype"),
        # a dtype of numbers that turns into one of objects by its state
        (b"cnumpy\ndtype\n(Vf8\ntR(I3\nV<\nN(Va\ntN I8\nI8\nI63\ntb.".replace(b" ", b""), "refused a dtype with state"),
        (b"cnumpy\ndtype\n(Vf8\ntR(I3\nVO\nNNNtb.", "refused a dtype with state"),
        (b"cnumpy\ndtype\n(Vf8\ntRNb.", "refused a dtype with state"),
        # numpy.ndarray called for uninitialised or endless memory
        (b"cnumpy\nndarray\n((I1000000000\nttR.", "refused a direct call"),
        # state set on the globals themselves, to leave a trace in this process
        (b"cnumpy\ndtype\n}Vx\nI1\nsb.", "refused to change the state"),
        (b"c_codecs\nencode\n(N}V__defaults__\n(V1\ntstb.", "refused to change the state"),
        # sizes that do not fit the bytes
        (
            b"cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8) + b"cnumpy\ndtype\n(Vf8\ntR(I9\ntVC\ntR.",
            "expected 72 bytes",
        ),
        (
            b"cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8) + b"cnumpy\ndtype\n(Vf8\ntR(I-1\ntVC\ntR.",
            "refused an array of shape",
        ),
        (b"cnumpy.core.numeric\n_frombuffer\n(]cnumpy\ndtype\n(Vf8\ntR(I1\ntVC\ntR.", "refused an array made of list"),
        # persistent identifiers, and instances made without a call
        (b"Pid\n.", "cannot read"),
        (b"(icnumpy\nndarray\n.", "cannot read"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "cannot read"),
    ],
)
def test_hand_made_pickles_find_no_way_around(write, content, message):
    with pytest.raises(DatasetError, match=message):
        wgcsl.read(write(content), reached=reached)
    # and the next file is read as ever
    assert_holds(wgcsl.read(write(buffer(), 2), reached=reached), buffer())


def test_rows_are_ready_for_training(write):
    data = wgcsl.read(write(buffer()), reached=reached).data
    assert {data[key].dtype for key in ("observation", "action", "desired_goal", "achieved_goal")} == {torch.float32}
    assert all(data[key].is_contiguous() for key in data.keys(include_nested=True, leaves_only=True))


def test_a_fall_earns_nothing(write):
    arrays = buffer(num_trajectories=2, steps=3)
    arrays["g"][:], arrays["ag"][:], arrays["o"][:] = 0.0, 0.0, 0.0
    arrays["o"][1, 2, 4] = 7.0  # after the second step of the second trajectory
    store = wgcsl.read(write(arrays), reached=reached, fallen=lambda rows: rows[:, 4] > 5)
    assert store.data["next", "reward"][:, 0].tolist() == [1, 1, 1, 1, 0, 1]


def test_whole_numbers_that_float32_rounds_are_named(write, caplog):
    arrays = buffer()
    arrays["u"] = np.full(arrays["u"].shape, -(1 << 24))
    wgcsl.read(write(arrays), reached=reached)
    assert not caplog.messages
    arrays["u"][0, 0, 0] -= 1
    wgcsl.read(write(arrays), reached=reached)
    assert [said.split(": ", 1)[1] for said in caplog.messages] == [
        "'u': whole numbers beyond 2**24 are rounded, as columns are float32"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # sets, persistent names, extensions, buffers from elsewhere, objects made without a call
        (b"\x80\x04\x8f.", "refused the instruction EMPTY_SET"),
        (b"\x80\x02K\x01Q.", "refused the instruction BINPERSID"),
        (b"\x80\x02\x82\x01.", "refused the instruction EXT1"),
        (b"\x80\x05\x97.", "refused the instruction NEXT_BUFFER"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "refused the instruction NEWOBJ"),
        (b"\xff.", r"refused the instruction b'\\xff', which is none of a pickle"),
        (b"\x80\x06N.", "expected a protocol of at most 5, found 6"),
        (b"\x80\x04\x95" + struct.pack("<Q", 99) + b"N.", "expected a frame of 99 bytes"),
        # hash of a tuple that holds itself forty times over
        (b"\x80\x02}K\x00" + b"q\x00h\x00\x86" * 40 + b"K\x01s.", "refused a dictionary key of type tuple"),
        (b"\x80\x02}N)s.", "refused a dictionary key of type NoneType"),
        # a memo of four billion places has the one that is used
        (b"\x80\x02Nr\xff\xff\xff\xff0.", "refused the instruction POP"),
        (b"\x80\x02j\x05\x00\x00\x00.", "expected a value under the number 5"),
        (b"\x80\x02\x8a\x09" + bytes(8) + b"\x01.", "more than 64 bits"),
        (b"I" + b"9" * 30 + b"\n.", "more than 64 bits"),
        (b"\x80\x02\x8b\x00\x00\x00\x00.", "refused the instruction LONG4"),
        (b"N" * 300_000 + b".", "expected at most 262144 instructions"),
        (b"\x80\x02X\xff\xff\xff\xffx.", "the pickle ends before its end: expected 4294967295 bytes"),
        (b"t.", "expected a mark"),
        (b"(R.", "expected a value on the stack"),
        (b"\x80\x02K\x01)R.", "refused a call of int with tuple"),
        (b"\x80\x02Na.", "expected a value on the stack|expected a list"),
        (
            b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x09\x85C\x01btR.",
            "refused an array that is not empty at first",
        ),
    ],
)
def test_instructions_that_arrays_are_not_written_with_are_refused_by_name(write, content, message):
    with pytest.raises(DatasetError, match=message) as error:
        wgcsl.read(write(content), reached=reached)
    assert len(str(error.value)) < 600


def test_messages_quote_no_more_than_a_line_of_a_file(write):
    long = "x" * 10**6
    for content in ({long: 1}, {"o": long}, buffer() | {"o": (long, [long])}, {long: buffer()["o"]}):
        with pytest.raises(DatasetError) as error:
            wgcsl.read(write(content), reached=reached)
        assert len(str(error.value)) < 600


def test_only_the_arrays_that_are_asked_for_are_read(write, monkeypatch):
    path = write(buffer() | {"video": np.zeros(1 << 16)})
    asked = []
    read = _unpickle._Stored.read
    monkeypatch.setattr(_unpickle._Stored, "read", lambda self, stream: asked.append(self.length) or read(self, stream))
    assert_holds(wgcsl.read(path, reached=reached), buffer())
    assert len(asked) == 4
    assert max(asked) < 1 << 16
