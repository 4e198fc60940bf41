"""Every block of Python on the site runs as it stands, page by page, each in the names of those before it."""

from __future__ import annotations

import doctest
import gc
import importlib
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_smore import GoalBatchSampler, SMORELoss, goal_specs, make_networks
from torchrl_smore.envs import EnvPool, collect, get_task
from torchrl_smore.trainers import Evaluator, FusedUpdate, KeepBest, OfflineTrainer, record_policy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# blocks that are a file: what runs them
FILES = {"howto/task.md": "my_module.py"}  # tests/recipes/test_own_task.py


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page that are no file."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    name = FILES.get(page.relative_to(DOCS).as_posix(), "")
    return [code for code in found if not name or not code.startswith(f"# {name}")]


def outputs(page: Path) -> dict[str, str]:
    """What a page shows that a Python block prints, in the block of text right after it, by the code."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```python\n((?:(?!^```).)*?)^```\n\n```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return dict(found)


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def assert_shown(shown: str, printed: str) -> None:
    """The same words, and numbers that a machine with other rounding could print, too."""
    assert _NUMBER.sub("#", shown) == _NUMBER.sub("#", printed)
    expected, found = ([float(n.replace(",", "")) for n in _NUMBER.findall(text)] for text in (shown, printed))
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.05)


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page)]


@contextmanager
def _trained_run():
    """A run of the seeds 0 and 3 at ``runs/NAME``, its trainer and data, two rows of inputs, the task in TorchRL."""
    from torchrl.envs import GymWrapper

    store = collect("PointReach", expert_episodes=2, random_episodes=4, seed=0, progress=False)
    networks = [make_networks(*goal_specs(2, 2, 2), hidden=(8,)) for _ in range(2)]
    losses = [SMORELoss(own.actor, own.score, own.value) for own in networks]
    update = FusedUpdate(losses, GoalBatchSampler(store.data, 8), seeds=(0, 3), lr=1e-3, total_steps=2, tau=0.005)
    columns = {"observation": ["x", "y"], "desired_goal": ["x", "y"], "action": ["dx", "dy"]}
    with EnvPool("PointReach", 2) as pool:
        evaluator = Evaluator(pool, episodes=1, horizon=2)
        options = {"total_steps": 2, "eval_interval": 2, "progress_bar": False}
        trainer = OfflineTrainer(update=update, run_dir="runs/NAME", evaluator=evaluator, **options)
        trainer.register_op("post_steps", KeepBest(trainer))
        trainer.train()
    record_policy("runs/NAME", losses[0], columns=columns)
    yield {
        "observation": np.zeros((2, 2), dtype=np.float32),
        "goal": np.ones((2, 2), dtype=np.float32),
        "action": np.zeros((2, 2), dtype=np.float32),
        "env": GymWrapper(get_task("PointReach").make_env()),
        "trainer": trainer,
        "store": store,
    }


@contextmanager
def _ant_files():
    """Two D4RL files of the Ant with 30 episodes of three steps each, the second of which falls."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    for name in ("expert", "medium"):
        observation = rng.normal(0, 0.1, (91, 111)).astype(np.float32)
        observation[:, 0] = 0.6  # the height of the torso
        row = np.arange(90)
        with h5py.File(f"ant_{name}-v2.hdf5", "w") as file:
            file["observations"], file["next_observations"] = observation[:-1], observation[1:]
            file["actions"] = rng.uniform(-1, 1, (90, 8)).astype(np.float32)
            file["rewards"] = np.zeros(90, dtype=np.float32)
            file["terminals"], file["timeouts"] = row == 5, (row % 3 == 2) & (row != 5)
    yield {}


@contextmanager
def _pictures():
    """A file of OGBench with two episodes of pictures, a success rule, and a folder for the frames."""
    rng = np.random.default_rng(0)
    columns = {"qpos": rng.normal(size=(10, 2)), "actions": rng.uniform(-1, 1, (10, 2))}
    arrays = {name: column.astype(np.float32) for name, column in columns.items()}
    arrays["observations"] = rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    arrays["terminals"] = np.arange(10) % 5 == 4
    np.savez("visual-scene-play-v0.npz", **arrays)
    Path("frames").mkdir()
    yield {"reached": lambda achieved, desired: np.linalg.norm(achieved - desired, axis=-1) < 0.1}


@contextmanager
def _one_process():
    """Networks, a batch, what draws and what takes steps of such, and a process group of this process alone."""
    from torch import distributed

    networks = make_networks(*goal_specs(2, 2, 2), hidden=(8,))
    rows = {key: torch.randn(4, 2) for key in ("observation", "action", "desired_goal")}
    batch = TensorDict({**rows, ("next", "observation"): torch.randn(4, 2)}, [4])
    distributed.init_process_group("gloo", init_method=f"file://{Path.cwd() / 'group'}", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            # torch remarks it of gradients with a side of length 1, and it costs time alone
            warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
            batch = batch.set("q", batch.clone())
            parameters = [p for own in (networks.actor, networks.value) for p in own.parameters()]
            optimizer = torch.optim.Adam(parameters)
            yield {"networks": networks, "batch": batch, "sampler": lambda: batch, "optimizer": optimizer}
    finally:
        distributed.destroy_process_group()


PREPARED: dict[str, Callable[[], AbstractContextManager[dict[str, object]]]] = {
    "datasets.md": _ant_files,
    "howto/images.md": _pictures,
    "howto/load.md": _trained_run,
    "howto/processes.md": _one_process,
    "howto/publish.md": _trained_run,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with PREPARED.get(page.relative_to(DOCS).as_posix(), lambda: nullcontext({}))() as prepared:
        names = {"__name__": page.stem, **prepared}
        for number, code in enumerate(blocks(page)):
            capsys.readouterr()
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
            shown = outputs(page).get(code)
            if shown is not None:
                assert_shown(shown, capsys.readouterr().out)
        # what a block has made of a process group must end before the group does: it may wait for it for ever
        names.clear()
        gc.collect()


EXAMPLES = [path for path in sorted((ROOT / "torchrl_smore").rglob("*.py")) if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_give_what_they_show(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_what_a_page_shows_is_compared_with_what_is_printed():
    assert_shown("return 0.77, 1,000 rows\n", "return 0.79, 1,010 rows\n")
    for printed in ("return 0.97, 1,000 rows\n", "success 0.77, 1,000 rows\n", "return 0.77\n", ""):
        with pytest.raises(AssertionError):
            assert_shown("return 0.77, 1,000 rows\n", printed)
    assert len(outputs(DOCS / "tutorial.md")) == 5


def test_the_blocks_that_are_files_are_there():
    for page, name in FILES.items():
        assert f"```python\n# {name}" in (DOCS / page).read_text(encoding="utf-8")


def test_no_page_shows_python_in_another_way():
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^``` ?(py|python3|pycon)$|^>>> |^    (from \w\S* )?import ", text, re.MULTILINE), page
