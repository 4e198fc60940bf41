"""Every benchmark runs at tiny sizes and leaves its files; the rules by which they judge are worked by hand."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# what other libraries warn about is not for a benchmark to fix
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def load(monkeypatch):
    """``load(name) -> module`` of a benchmark script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def run(load, monkeypatch, out, name, *options):
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", f"--out={out}", *options])
    module.main()
    return list(csv.DictReader(out.with_suffix(".csv").open(newline="")))


CASES = {
    "bench_sampler": {"GoalBatchSampler (rho and q)", "HERReplayBuffer (rho)", "TensorDictReplayBuffer, no goals"},
    "bench_buffer": {"ours, GrowingRowStorage (rho and q), growing", "HERReplayBuffer (rho), growing"},
    "bench_scaling": {"1", "2", "4"},
    "bench_collect": {"bare simulator", "collection", "evaluation, one process, batched"},
    "bench_trace": {"SMORELoss", "SMORe by hand"},
    "bench_pictures": {"SMORe, bf16", "cloning, float32", "floor: SMORe's encoders alone, bf16"},
    "bench_data": {"read buffer.pkl", "load, with checksums", "save"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_leaves_positive_numbers_of_every_variant_and_a_plot(name, load, monkeypatch, tmp_path, capsys):
    if name == "bench_data":
        # the memory of two more processes takes seconds to measure and is another test's subject
        monkeypatch.setattr(load(name), "peak_memory", lambda source, path, updates: {"training": 1.0})
    rows = run(load, monkeypatch, tmp_path / "out", name)
    assert {row["variant"] for row in rows} >= CASES[name]
    assert all(0.0 < float(row["value"]) < math.inf for row in rows)
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "torch 2." in capsys.readouterr().out


def test_the_floor_of_pictures_encodes_as_many_as_an_update_of_smore(load, monkeypatch):
    bench = load("bench_pictures")
    calls, forward = [], bench.PixelEncoder.forward

    def counted(self, *pictures):
        calls.append((len(pictures), pictures[0].shape[:-3].numel()))
        return forward(self, *pictures)

    monkeypatch.setattr(bench.PixelEncoder, "forward", counted)
    update = bench.make_update(bench.picture_store(2), 3, "float32", cloning=False)
    calls.clear()
    update()
    of_update = sorted(calls)
    calls.clear()
    bench.encoders_alone(3, "float32")()
    assert sorted(calls) == of_update == [(1, 3), (1, 12), (2, 3)]


def test_rows_of_several_blocks_are_read_as_they_were_written(load, monkeypatch, tmp_path):
    bench, harness = load("bench_scale"), load("harness")
    monkeypatch.setattr(bench, "BLOCK", 2)
    made = []
    original = harness.random_dataset
    monkeypatch.setattr(harness, "random_dataset", lambda number: made.append(original(number)) or made[-1])
    bench.write_rows(tmp_path, 5)
    assert [len(block) for block in made] == [100, 100, 50]
    data = bench.read_rows(tmp_path)
    assert bool((data == torch.cat(made).exclude("traj_stop")).all())
    assert len(bench.read_rows(tmp_path, 50)) == 50


def test_pages_of_a_mapped_table_are_counted_and_taken_out_of_memory(load, tmp_path):
    bench, data = load("bench_scale"), load("harness").random_dataset(200)
    sampler = load("torchrl_smore").GoalBatchSampler(data, 256, mapped=tmp_path)
    pages = bench.Pages(sampler._table)
    # 10,000 rows of 60 numbers
    assert pages.in_memory() == -(-10_000 * 240 // 4096) * 4096
    uniform = sampler.draw()
    before = sampler.gather(uniform)
    pages.keep(0)
    assert pages.in_memory() == 0
    assert bool((sampler.gather(uniform) == before).all())
    assert 0 < pages.in_memory() <= 512 * 2 * 4096


def test_updates_from_a_file_leave_numbers_and_a_plot(load, monkeypatch, tmp_path):
    # one process of three, since each takes seconds to start
    rows = run(load, monkeypatch, tmp_path / "out", "bench_scale", "--kinds", "mapped", "in passing")
    measured = ("", ": RssAnon", ": RssFile", ": VmHWM", ": table")
    assert {row["variant"] for row in rows} == {kind + what for kind in ("mapped", "in passing") for what in measured}
    # of a table whose rows pass through memory no page of the file is mapped
    assert all((float(row["value"]) > 0.0) == (row["variant"] != "in passing: table") for row in rows)
    assert (tmp_path / "out.png").stat().st_size > 1000


TINY_RUN = (
    *("task=PointReach", "num_trajectories=20", "batch_size=8"),
    *("steps=4", "eval_interval=2", "eval_episodes=2"),
)


def test_the_time_to_a_policy_is_that_of_parts_that_add_up(python, load, tmp_path):
    options = TINY_RUN
    begun, script = time.time(), BENCHMARKS / "bench_time_to_policy.py"
    done = python(script, "--child", tmp_path / "times.json", begun, *options, "rollout=false", cwd=tmp_path)
    assert done.status == 0, done.stderr
    times, bench = json.loads((tmp_path / "times.json").read_text()), load("bench_time_to_policy")
    assert tuple(times["parts"]) == bench.PARTS
    assert all(seconds > 0.0 for seconds in times["parts"].values())
    assert sum(times["parts"].values()) == pytest.approx(times["seconds"])
    assert times["seconds"] < time.time() - begun
    assert len(times["successes"]) == 2
    assert bench.seconds_to([(3.0, 0.5), (5.0, 0.9), (7.0, 1.0)], 0.9) == 5.0
    assert bench.seconds_to([(3.0, 0.5)], 0.9) is None


@pytest.mark.parametrize(
    ("options", "ours", "theirs"),
    [
        ([], [], {}),
        (["--peer"], ["evaluation=here"], {"torchrl_iql_policy": []}),
        (["--jax-python=python"], ["evaluation=here"], {"jax_gciql_policy": []}),
        (
            ["--peer", "evaluation=background"],
            ["evaluation=background"],
            {"torchrl_iql_policy": ["evaluation=background"]},
        ),
    ],
    ids=["alone", "TorchRL", "JAX", "named"],
)
def test_beside_peers_ours_evaluates_where_they_do_unless_it_is_named(
    load, monkeypatch, tmp_path, options, ours, theirs
):
    bench, asked = load("bench_time_to_policy"), {}

    def timed_run(program, options, cwd, threads):
        asked[Path(program[1]).stem] = options
        return {"parts": dict.fromkeys(bench.PARTS, 1.0), "seconds": 7.0, "successes": [(3.0, 1.0)]}

    monkeypatch.setattr(bench, "timed_run", timed_run)
    monkeypatch.setattr(sys, "argv", ["bench", f"--out={tmp_path / 'out'}", *options])
    bench.main()
    assert asked == {"bench_time_to_policy": ours, **theirs}


@pytest.mark.parametrize("peer", ["torchrl_iql_policy", "jax_gciql_policy"])
def test_a_peer_does_the_same_work_on_the_same_data(python, peer, tmp_path):
    if "jax" in peer:
        pytest.importorskip("jax")
    script = BENCHMARKS / "peers" / f"{peer}.py"
    done = python(script, tmp_path / "times.json", time.time(), *TINY_RUN, cwd=tmp_path)
    assert done.status == 0, done.stderr
    times = json.loads((tmp_path / "times.json").read_text())
    assert sum(times["parts"].values()) == pytest.approx(times["seconds"])
    assert all(seconds > 0.0 for part, seconds in times["parts"].items() if part != "pictures")
    assert len(times["successes"]) == 2
    # the dataset is the recipe's, under its name
    assert (tmp_path / "datasets" / "PointReach_expert2_random18_seed0").is_dir()


def test_the_jax_peer_has_the_losses_of_goal_conditioned_iql(load, monkeypatch):
    jnp = pytest.importorskip("jax.numpy")
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    peer = load("jax_gciql_policy")

    def constant(value, inputs):
        return [(jnp.zeros((inputs, 1)), jnp.full(1, value))]

    # one row at its goal, one not; 2 inputs of state and goal, 1 of action; all networks constant
    params = {"value": constant(-3.0, 2), "critic": [constant(-1.0, 3), constant(-2.0, 3)]}
    params["actor"] = {"trunk": constant(0.0, 2), "log_std": jnp.zeros(1)}
    target = [constant(-4.0, 3), constant(-1.0, 3)]
    state, action = jnp.zeros((2, 2)), jnp.array([[1.0], [0.0]])
    batch = {"state": state, "next_state": state, "action": action, "reached": jnp.array([1.0, 0.0])}
    # target's smaller score -4 lies below the value -3: weight 1 - 0.7
    value = 0.3
    # backups 0, and -1 + 0.9 * -3 = -3.7
    critics = ((1.0 + 2.7**2) + (4.0 + 1.7**2)) / 2
    # advantage min(-1, -2) + 3 = 1, log-likelihoods of a unit normal at 1 and 0
    actor = math.e * (math.log(2.0 * math.pi) / 2 + 0.25)
    assert float(peer.loss(params, target, batch)) == pytest.approx(value + critics + actor, rel=1e-6)


def test_what_is_timed_within_a_part_is_no_part_of_it(load, monkeypatch):
    bench, now = load("bench_time_to_policy"), iter([10.0, 11.0, 14.0, 20.0, 25.0])
    monkeypatch.setattr(bench.time, "time", lambda: next(now))
    clock = bench.Clock(4.0)
    with clock.part("evaluations"), clock.part("updates"):
        pass
    found = clock.finished()
    # 11 to 14 within 10 to 20; from 4 to 25 in all
    assert (found["parts"]["updates"], found["parts"]["evaluations"], found["parts"]["rest"]) == (3.0, 7.0, 11.0)


def test_the_update_benchmark_checks_then_times_ours_and_the_hand_written_update(load, monkeypatch, tmp_path, capsys):
    options = ("--jax-python", sys.executable) if importlib.util.find_spec("jax") else ()
    rows = run(load, monkeypatch, tmp_path / "out", "bench_update", *options)
    assert {row["variant"] for row in rows} >= {"in_sample, bf16, off", "official_stable, float32, off"}
    assert "| in_sample, by hand |" in capsys.readouterr().out


def test_what_trains_one_seed_is_left_out_beside_several(load, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(load("harness"), "Peer", None)  # none is started
    rows = run(load, monkeypatch, tmp_path / "out", "bench_update", "--seeds=2", "--jax-python=python")
    updates = {row["variant"]: row["seeds"] for row in rows if row["unit"] == "updates/s"}
    assert updates == {
        f"{formulation}, {precision}, off": "2"
        for formulation in ("in_sample", "official_stable")
        for precision in ("float32", "bf16")
    }
    assert "by hand are left out: an update of theirs is of one seed, and of ours of 2" in capsys.readouterr().out


def test_the_floor_can_be_worked_out_from_the_csv(load, monkeypatch, tmp_path, capsys):
    bench, drawn = load("bench_update"), []
    monkeypatch.setattr(bench.harness, "plot_bars", lambda path, found, *words: drawn.extend(found))
    args = argparse.Namespace(out=str(tmp_path / "out"), batch_size=512, width=256, threads=1, seeds=1)
    found = {"peak float32": [2e9, 3e9], "peak bf16": [8e9, 8e9], "ours": [10.0, 20.0], "ours, bf16": [40.0, 20.0]}
    bench.report(args, found, {"ours": (None, 50_000_000, "float32"), "ours, bf16": (None, 50_000_000, "bf16")})
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {(row["variant"], row["turn"]): (float(row["value"]), row["unit"]) for row in csv.DictReader(file)}
    assert rows == {
        **{("ours", "0"): (10.0, "updates/s"), ("ours", "1"): (20.0, "updates/s")},
        **{("ours, bf16", "0"): (40.0, "updates/s"), ("ours, bf16", "1"): (20.0, "updates/s")},
        **{("peak float32", "0"): (2e9, "FLOP/s"), ("peak float32", "1"): (3e9, "FLOP/s")},
        **{("peak bf16", "0"): (8e9, "FLOP/s"), ("peak bf16", "1"): (8e9, "FLOP/s")},
    }
    # of turns 0 and 1: 2e9 / (10 * 5e7) = 4, 3e9 / (20 * 5e7) = 3; 8e9 / (40 * 5e7) = 4, 8e9 / (20 * 5e7) = 8
    out = capsys.readouterr().out
    assert "| ours | 15 [10, 20] |  |  | 0.050 | 3.5 [3, 4] |" in out
    assert "| ours, bf16 | 30 [20, 40] |  |  | 0.050 | 6 [4, 8] |" in out
    # a peak is no rate of updates
    assert drawn == ["ours", "ours, bf16"]


def test_the_check_of_the_hand_written_update_sees_a_wrong_loss(load, monkeypatch):
    bench, by_hand = load("bench_update"), load("functional_update")
    data = load("harness").random_dataset(4)
    bench.check_functional(data, 8)
    monkeypatch.setattr(by_hand, "EXPECTILE", 0.7)
    with pytest.raises(AssertionError):
        bench.check_functional(data, 8)


def test_the_counted_flops_are_those_worked_by_hand(load):
    rows, width, state, action = 3, 5, 28, 4

    def network(inputs, outputs, num_rows, backward):
        layers = [inputs * width, width * width, width * outputs]
        forward = 2 * num_rows * sum(layers)
        # the gradient of every weight, and of every input but the first
        return forward + (forward + 2 * num_rows * sum(layers[1:]) if backward else 0)

    score = 2 * network(state + action, 1, 2 * rows, True) + 2 * network(state + action, 1, rows, False)
    value = network(state, 1, rows, True) + network(state, 1, 2 * rows, False)
    actor = network(state, action, rows, True)
    assert load("bench_update").count_flops("in_sample", rows, width) == score + value + actor


def test_ratios_are_taken_within_a_turn_and_shown_with_their_range(load):
    harness = load("harness")
    # the machine was twice as slow in the second turn: the ratio does not notice
    assert harness.ratio([3.0, 1.5, 4.0], [1.0, 0.5, 1.0]) == "3 [3, 4]"
    assert harness.spread([2.0, 1.0, 9.0]) == "2 [1, 9]"


def test_blocks_take_turns_and_the_first_turn_is_dropped(load):
    order = []

    def block(name):
        return lambda: order.append(name) or float(len(order))

    found = load("harness").interleave({"a": block("a"), "b": block("b")}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_the_local_exponent_is_the_power_of_a_power_law(load):
    slopes = load("bench_scaling").exponents({1: [5.0], 4: [80.0], 8: [80.0]})
    assert slopes[0] is None
    assert slopes[1:] == pytest.approx([2.0, 0.0])


def test_precisions_differ_where_their_means_are_further_apart_than_the_seeds(load):
    module = load("compare_precision")

    def rows(float32, bf16):
        return [
            {"task": "T", "variant": variant, "seed": seed, "step": step, module.METRIC: value}
            for variant, curves in (("in_sample", float32), ("in_sample bf16", bf16))
            for seed, curve in enumerate(curves)
            for step, value in enumerate(curve)
        ]

    # last evaluations 2, 4 (mean 3, deviation 1.41): 4.2 is within it, 5 is not
    verdicts = [module.verdict(rows([[0, 2], [0, 4]], [[0, x], [0, x]]), "T")[0][-1] for x in (4.2, 5.0)]
    assert verdicts == ["agree", "DIFFER"]
    # equal ends after a slower start
    last, mean = module.verdict(rows([[2, 4], [4, 4]], [[0, 4], [0, 4]]), "T")
    assert (last[-1], mean[-1]) == ("agree", "DIFFER")


def test_a_run_is_done_again_where_anything_that_decides_it_is_another(load):
    key = load("compare_formulations").key
    run = {"task": "T", "dataset": "d", "variant": "dual", "seed": 0, "steps": 10, "batch_size": 8}
    run |= {"episodes": 5, "eval_interval": 2}
    row = {name: str(value) for name, value in run.items()} | {"step": "2", "score": "0.1"}
    assert key(row) == key(run)
    for name in run:
        assert key(row) != key({**run, name: "other"})
        assert key({other: value for other, value in row.items() if other != name}) != key(run)


def test_a_file_that_does_not_say_what_its_runs_are_of_is_refused(load, tmp_path):
    read = load("compare_formulations").read_rows
    assert read(tmp_path / "none.csv") == []
    path = tmp_path / "older.csv"
    path.write_text("task,variant,seed,steps,batch_size,step\nT,dual,0,10,8,2\n")
    with pytest.raises(ValueError, match=r"older.csv does not say dataset, episodes, eval_interval of its runs"):
        read(path)


def test_a_peer_answers_and_its_failure_is_reported(load, monkeypatch, tmp_path):
    harness = load("harness")
    (tmp_path / "peer.py").write_text(
        "import sys\nprint('ok ready', flush=True)\nfor line in sys.stdin:\n"
        "    print('ok 2.0' if line == 'run 8\\n' else 'no', flush=True)\n    if line != 'run 8\\n': break\n"
    )
    monkeypatch.setattr(harness, "PEERS", tmp_path)
    peer = harness.Peer(sys.executable, "peer.py", 1)
    assert peer.hello == "ready"
    assert peer.block(8)() == 4.0
    with pytest.raises(RuntimeError, match=r"peer.py stopped: no"):
        peer.ask("run 9")
    peer.close()


def test_a_peer_that_says_something_else_and_waits_is_ended(load, monkeypatch, tmp_path):
    harness = load("harness")
    (tmp_path / "peer.py").write_text("import sys\nprint('a log line', flush=True)\nsys.stdin.read()\n")
    monkeypatch.setattr(harness, "PEERS", tmp_path)
    with pytest.raises(RuntimeError, match=r"peer.py stopped: a log line"):
        harness.Peer(sys.executable, "peer.py", 1)


def test_the_torchrl_peer_answers(load):
    harness = load("harness")
    peer = harness.Peer(sys.executable, "torchrl_iql.py", 1, batch_size=8, width=8, trajectories=4)
    assert peer.hello == "torchrl IQLLoss, prefetch=4, compile=off"
    assert peer.block(2)() > 0.0
    peer.close()
