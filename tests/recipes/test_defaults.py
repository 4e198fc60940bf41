"""Defaults of preset, method and task, and the variants of methods that options reach."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tensordict import TensorDict

from torchrl_smore.data import TrajectoryStore
from torchrl_smore.envs import get_task, task_names
from torchrl_smore.reports import Paper

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = (
    *("task=PointReach", "batch_size=8", "steps=2", "eval_episodes=2", "threads=1", "device=cpu", "rollout=false"),
)


@pytest.fixture(scope="module")
def recipes():
    """The parts of the recipes, imported as they import each other."""
    sys.path.insert(0, str(RECIPES))
    from parts import build, checks, defaults, methods, options

    yield SimpleNamespace(build=build, checks=checks, defaults=defaults, methods=methods, options=options)
    sys.path.remove(str(RECIPES))


@dataclass
class Options:
    task: str = "T"
    method: str = "m"
    preset: str = "quick"
    steps: int | None = None
    expectile: float | None = None
    batch_size: int | None = None
    networks: str = "paper"


@pytest.fixture
def folder(tmp_path, recipes, monkeypatch):
    """Writes files of defaults to a folder of their own: ``folder(task=..., method=..., preset=...)``."""
    monkeypatch.setattr(recipes.defaults, "CONFIGS", tmp_path)

    def write(**texts):
        names = {"task": "T", "method": "m", "preset": "quick"}
        for kind, text in texts.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{names[kind]}.yaml").write_text(text)

    return write


def test_the_users_value_then_task_then_method_then_preset(recipes, folder):
    folder(
        preset="steps: 1\nbatch_size: 1\nexpectile: 0.1",
        method="expectile: 0.2\nbatch_size: 2",
        task="batch_size: 3\npresets:\n  quick:\n    batch_size: 4\n  paper:\n    batch_size: 5\n"
        "methods:\n  other:\n    expectile: 0.9",
    )
    resolve = recipes.defaults.resolve
    assert resolve(Options()) == Options(steps=1, expectile=0.2, batch_size=4)
    assert resolve(Options(batch_size=7)).batch_size == 7
    assert resolve(Options(method="other")).expectile == 0.9
    assert resolve(Options(preset="paper")).batch_size == 5
    assert resolve(Options(task="unheard of")).batch_size == 2


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"method": "expectle: 0.7"}, "m.yaml: the recipe has no option 'expectle'. Did you mean expectile?"),
        ({"task": "presets:\n  quick:\n    step: 3"}, "presets.quick: the recipe has no option 'step'"),
        ({"method": "methods:\n  m:\n    steps: 3"}, "no option 'methods'"),
        ({"preset": "steps: many"}, "quick.yaml: steps:"),
        ({"task": "[1, 2]"}, "must hold options by name, found list"),
        ({"task": "{["}, "is not YAML"),
    ],
)
def test_a_faulty_file_is_refused_by_name(recipes, folder, texts, said):
    folder(**texts)
    with pytest.raises(ValueError, match="yaml") as error:
        recipes.defaults.resolve(Options())
    assert said in str(error.value)


def test_every_file_fits_the_recipe_and_belongs_to_a_method_a_task_or_a_preset(recipes):
    defaults, methods = recipes.defaults, recipes.methods
    known = {
        "method": set(methods.METHODS),
        "task": {*task_names(), *(cell.task for cell in Paper().cells)},
        "preset": set(defaults.PRESETS),
    }
    for kind, names in known.items():
        found = {path.stem for path in (RECIPES / "configs" / kind).glob("*.yaml")}
        assert found <= names
        for name in found:
            assert defaults.read_defaults(recipes.options.Config, kind, name)
    assert {path.stem for path in (RECIPES / "configs" / "method").glob("*.yaml")} == known["method"]


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_every_task_and_method_has_all_that_a_run_needs(recipes, preset):
    methods = recipes.methods
    for task in task_names():
        for name, method in methods.METHODS.items():
            config = recipes.options.with_defaults(recipes.options.Config(task=task, method=name, preset=preset))
            needed = ["steps", "batch_size", "num_trajectories", "eval_interval", "log_interval", "save_interval"]
            needed += ["learning_rate", "her_ratio", *(["target_rate"] if method.target_network else [])]
            assert [option for option in needed if getattr(config, option) is None] == []
            if task == "PointReach" and preset == "quick":
                recipes.checks.check(config)


def test_the_papers_numbers(recipes):
    def paper(task):
        return recipes.options.with_defaults(recipes.options.Config(task=task, preset="paper"))

    # App. C.1 and Table 4
    steps = {"FetchReach": 400_000, "FetchPick": 400_000, "FetchSlide": 400_000, "FetchPush": 1_000_000}
    assert {task: paper(task).steps for task in steps} == steps
    reach = paper("FetchReach")
    assert (reach.batch_size, reach.expectile, reach.temperature, reach.her_ratio) == (512, 0.8, 3.0, 0.8)
    assert (paper("HandReach").expectile, paper("SawyerDoor").expectile) == (0.7, 0.8)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        (["method=smore", "actor=score", "value_target=policy", "expectile=0.5"], "loss_score"),
        (["method=gofar", "divergence=kl"], "loss_discriminator"),
        (["method=gofar", "reward=binary"], "loss_value"),
        (["method=gofar", "actor_weight=expectile_awr", "expectile=0.7", "temperature=1"], "loss_discriminator"),
        (["method=wgcsl_original"], "loss_qvalue"),
        (["method=wgcsl", "regression=nll", "schedule=cosine"], "loss_qvalue"),
        (["method=gc_sql", "alpha=0.5"], "loss_qvalue"),
        (["method=crl", "contrast=symmetric_infonce", "energy=l2"], "loss_critic"),
        (["method=crl", "actor=awr", "temperature=1"], "loss_value"),
        (["method=crl_td"], "loss_critic"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_variant_is_reached_by_options_and_trains(recipe, tmp_path, store_path, options, loss):
    done = recipe("smore_offline.py", *QUICK, f"dataset={store_path}", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 2
    assert loss in (run_dir / "metrics.csv").read_text().splitlines()[0]
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert {name: config[name] for name, _, _ in map(str.partition, options, "=" * len(options))} == {
        name: yaml.safe_load(value) for name, _, value in map(str.partition, options, "=" * len(options))
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method=gofar", "divergence=kll"], "kll"),
        (["method=gofar", "reward=sparse"], "'sparse'"),
        (["method=crl", "energy=cosine"], "'cosine'"),
        (["method=gc_iql", "actor=score"], "method=gc_iql has no option actor"),
        (["value_target=policy"], "needs actor='score'"),
        (["preset=quik"], "Did you mean quick?"),
        (["schedule=linear"], "unknown schedule 'linear'"),
        (["method=gcsl", "goals=away", "actor_goals=final"], "method=gcsl has one kind of goals: give goals= or"),
        (["goal_gamma=1"], "goal_gamma must be in (0, 1), got 1.0"),
        (["goal_gamma=0.9"], "goal_gamma: of no use without geometric goals, got future"),
        (["method=crl", "goals=away", "goal_gamma=0.9"], "of no use without geometric goals, got away"),
        (["goal_stitch=1.5"], "goal_stitch must be in [0, 1], got 1.5"),
        (["pixels=48", "goal_stitch=0.5"], "whose goals are pictures of the data"),
        (["method=wgcsl", "goal_stitch=0.5"], "takes a hindsight goal for one that its trajectory reaches"),
        (["method=crl", "goal_stitch=0.5"], "takes a hindsight goal for one that its trajectory reaches"),
        (["method=gc_bc", "goal_stitch=0.5", "her_ratio=0"], "of no use with her_ratio=0"),
        (["method=wgcsl_original", "compile=default"], "compile=default: method=wgcsl_original writes buffers"),
        (["method=gc_xql", "alpha=-1"], "alpha must be positive, got -1.0"),
        (["method=gofar", "regression=mae"], "'mae'"),
        (["method=crl", "goals=random"], "random goals: method=crl takes a hindsight goal for one that its trajectory"),
        (["method=crl", "bc_coef=-1"], "bc_coef must not be negative, got -1"),
        (["crop_prob=1"], "crop_prob: of no use without pixels="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_a_method_has_not_is_refused(recipe, tmp_path, options, said):
    done = recipe("smore_offline.py", *QUICK, *options, cwd=tmp_path)
    assert done.status == 2
    (error,) = done.stderr.splitlines()
    assert said in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "crl_td", "contamination": 0.1}, "does not read the likelihood of its actor, so it has no contam"),
        ({"method": "crl_td", "pixels": 48, "min_std": 0.1}, "so it has no min_std"),
        ({"method": "am", "contamination": 0.4, "min_std": 0.5}, "so it has no contamination or min_std"),
        ({"method": "gcsl", "contamination": 0.4}, r"\(regression=nll would\), so it has no contamination"),
        ({"method": "gofar", "preset": "paper", "contamination": 0.4}, "so it has no contamination"),
        ({"crop_prob": 1.0}, "crop_prob: of no use without pixels="),
        ({"method": "crl_td", "networks": "official"}, "networks=official: of no use with method=crl_td"),
        ({"pixels": 48, "networks": "official"}, "networks=official: of no use with pixels="),
        (
            {"method": "gofar", "temperature": 50.0, "expectile": 0.9},
            "temperature, expectile: of no use with actor_",
        ),
        ({"actor": "score", "weight_clip": 3.0}, "weight_clip: of no use with actor=score of method=smore"),
        ({"method": "crl", "temperature": 5.0}, "temperature: of no use with actor=ddpgbc of method=crl"),
        ({"method": "crl", "actor": "awr", "bc_coef": 5.0}, "bc_coef: of no use with actor=awr of method=crl"),
        ({"method": "smroe"}, "unknown method 'smroe'"),
        ({"anchors": "uniform", "anchor_share": 0.3}, "^anchor_share: of no use with anchors=uniform"),
        ({"preset": "paper", "anchor_share": 0.3}, "^anchor_share: of no use with anchors=uniform"),
        ({"normalize": False, "input_clip": 2.0}, "^input_clip: of no use with normalize=false"),
        ({"her_ratio": 0.0, "goals": "away"}, "^goals: of no use with her_ratio=0, which keeps stored goals"),
        ({"her_ratio": 0.0, "actor_goals": "final"}, "^actor_goals: of no use with her_ratio=0"),
        ({"her_ratio": 0.0, "goals": "geometric", "goal_gamma": 0.9}, "^goals, goal_gamma: of no use with her_ratio=0"),
        ({"method": "gc_bc", "goals": "away"}, "^goals: of no use with her_ratio=0"),  # the method's
        ({"pixels": 48, "normalize": False}, "^normalize: of no use with pixels=, whose inputs are never standardised"),
        ({"pixels": 48, "input_clip": 1.0}, "^input_clip: of no use with pixels="),
        (
            {"expert_fraction": 0.0, "expert_policy": "nowhere"},
            "^expert_policy: of no use, as no episode of FetchReach",
        ),
        (
            # 4 x 0.1 rounds to 0
            {"task": "PointReach", "num_trajectories": 4, "expert_noise": 0.1, "expert_random_prob": 0.2},
            "^expert_noise, expert_random_prob: of no use, as no episode of PointReach is an expert's",
        ),
        (
            {"task": "AntTgtVel-m-e", "expert_fraction": 0.0, "expert_noise": 0.1, "expert_policy": "nowhere"},
            "^expert_policy, expert_noise: of no use",
        ),
    ],
    ids=str,
)
def test_what_nothing_would_read_is_refused_where_it_was_given(recipes, options, said):
    Config = recipes.options.Config
    with pytest.raises(ValueError, match=said):
        recipes.options.check_given(Config(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gcsl", "regression": "nll", "contamination": 0.4},
        {"method": "hindsight_bc", "contamination": 0.4},
        {"method": "crl_td", "pixels": 48, "contamination": 0.1},
        # whose defaults have regression=nll
        {"method": "gofar", "contamination": 0.4, "min_std": 0.1},
        {"method": "wgcsl", "contamination": 0.4},
        {"method": "gofar", "actor_weight": "expectile_awr", "temperature": 50.0},
        {"method": "crl", "actor": "awr", "temperature": 5.0},
        {"method": "crl", "networks": "official", "bc_coef": 0.3},
        {"anchor_share": 0.3},
        {"preset": "paper", "anchors": "moving", "anchor_share": 0.3},
        {"input_clip": 2.0},
        {"method": "gc_bc", "her_ratio": 0.5, "goals": "away"},
        {"pixels": 48, "method": "hindsight_bc", "goals": "away"},
        # noise is a default of the task, and nobody has given it
        {"task": "HandReach", "expert_fraction": 0.0},
        {"task": "PointReach", "num_trajectories": 10, "expert_noise": 0.1},
        {"num_trajectories": 0, "expert_noise": 0.1},  # refused by its range
    ],
    ids=str,
)
def test_what_is_read_is_taken(recipes, options):
    recipes.options.check_given(recipes.options.Config(**options))


def test_a_method_has_the_options_of_its_loss_and_no_list_of_them_is_kept(recipes):
    methods = recipes.methods
    options = {name: set(recipes.options.method_options(name)) for name in methods.METHODS}
    assert options["gc_iql"] == {"expectile", "temperature", "gamma", "weight_clip", "advantage_unit"}
    assert options["gc_iql"] < options["smore"]
    assert {"score_bounds", "formulation", "value_target"} <= options["smore"]
    # what makes a method is none of its options
    assert options["gcsl"] == {"regression"}
    assert options["hindsight_bc"] == set()
    assert "reward" in options["gofar"]
    assert "kernels" not in set().union(*options.values())


@pytest.mark.parametrize(
    ("method", "schedule", "decays"),
    [("smore", None, True), ("smore", "constant", False), ("gcsl", None, False), ("gcsl", "cosine", True)],
)
def test_the_schedule_is_the_methods_unless_it_is_chosen(recipes, store_path, method, schedule, decays):
    options = {"dataset": str(store_path), "device": "cpu", "batch_size": 8, "steps": 4, "schedule": schedule}
    config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", method=method, **options))
    store, cpu = TrajectoryStore.load(store_path), torch.device("cpu")
    update = recipes.build.make_update(config, get_task("PointReach"), store, cpu)
    for _ in range(4):
        update()
    before = update.params["actor_network"].clone()
    update()
    # a cosine of 4 updates has come to a rate of 0
    assert torch.equal(update.params["actor_network"], before) == decays


@pytest.mark.parametrize("method", ["gc_iql", "gc_sql", "gc_eql", "gc_xql", "smore", "crl", "hindsight_bc"])
def test_an_actor_has_goals_of_its_own_where_its_loss_reads_them(recipes, store_path, method):
    own = {"goals": "away"} if method not in ("crl", "hindsight_bc") else {}
    options = {"dataset": str(store_path), "actor_goals": "final", "device": "cpu", "batch_size": 32, **own}
    config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", method=method, **options))
    store = TrajectoryStore.load(store_path)
    task, cpu = get_task("PointReach"), torch.device("cpu")
    loss, batch = (make(config, task, store, cpu) for make in (recipes.build.make_loss, recipes.build.make_sampler))
    keys = set(batch().keys())
    assert ("actor_goal" in loss.in_keys) == ("actor_goal" in keys) == (method not in ("crl", "hindsight_bc"))


@pytest.mark.parametrize(
    ("method", "given", "drawn"),
    [
        # of the task, whose actor has goals of its own
        ("smore", {}, ("future", "final")),
        ("smore", {"goals": "geometric"}, ("geometric", "final")),
        ("gcsl", {}, ("final", None)),
        ("gcsl", {"goals": "geometric"}, ("geometric", None)),
        ("crl", {"goals": "away"}, ("away", None)),
        # goals of its own kind are part of the method
        ("crl", {}, ("geometric", None)),
        ("crl", {"actor_goals": "away"}, ("away", None)),
        ("gcsl", {"actor_goals": "away"}, ("away", None)),
    ],
)
def test_goals_that_were_given_come_before_those_that_a_task_gives_the_actor(recipes, store_path, method, given, drawn):
    Config, read = recipes.options.Config, recipes.defaults.read_defaults(recipes.options.Config, "task", "FetchSlide")
    assert read["presets"]["quick"]["actor_goals"] == "final"
    options = {"dataset": str(store_path), "device": "cpu", "batch_size": 8}
    config = recipes.options.with_defaults(Config(task="FetchSlide", method=method, **options, **given))
    store, task = TrajectoryStore.load(store_path), get_task("PointReach")
    sampler = recipes.build.make_sampler(config, task, store, torch.device("cpu"))
    assert (sampler.strategy, sampler.actor_strategy) == drawn


@pytest.mark.parametrize(("given", "gamma"), [({}, 0.99), ({"goal_gamma": 0.8}, 0.8)])
def test_geometric_goals_have_a_discount_of_their_own(recipes, store_path, given, gamma):
    options = {"dataset": str(store_path), "device": "cpu", "batch_size": 8, "goals": "geometric", "gamma": 0.9}
    config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", **options, **given))
    store = TrajectoryStore.load(store_path)
    sampler = recipes.build.make_sampler(config, get_task("PointReach"), store, torch.device("cpu"))
    assert (sampler.strategy, sampler.gamma) == ("geometric", gamma)


@pytest.mark.parametrize(
    ("method", "ensemble", "copies"),
    [
        *(("smore", None, 2), ("smore", 5, 5), ("smore", 1, 1), ("gc_iql", 3, 3), ("wgcsl", 1, 1)),
        *(("am", None, 1), ("am", 3, 3), ("crl", 4, 4), ("crl_td", 4, 4)),
    ],
)
def test_an_ensemble_has_as_many_networks_as_are_asked_for(recipes, method, ensemble, copies):
    config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", method=method, ensemble=ensemble))
    loss = recipes.build.make_loss(config, get_task("PointReach"), None, torch.device("cpu"))
    (name,) = (n for n in ("score_network", "qvalue_network", "critic_network") if hasattr(loss, f"{n}_params"))
    # a network on its own has no dimension of networks
    assert getattr(loss, f"{name}_params").shape in ((copies,), () if copies == 1 else (copies,))


@pytest.mark.parametrize(
    ("method", "option", "having"),
    [
        ("smore", "critics", {"score_network", "value_network"}),
        ("smore", "actor", {"actor_network"}),
        ("gc_iql", "all", {"actor_network", "qvalue_network", "value_network"}),
        ("gofar", "critics", {"value_network"}),
        ("gcsl", "actor", {"actor_network"}),
        ("smore", None, set()),
        ("am", None, {"qvalue_network"}),
        ("am", "none", set()),
    ],
)
def test_layer_norm_stands_in_the_networks_that_it_is_asked_for_in(recipes, method, option, having):
    config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", method=method, layer_norm=option))
    loss = recipes.build.make_loss(config, get_task("PointReach"), None, torch.device("cpu"))
    parts = {name.split("_params")[0]: getattr(loss, name.split(".")[0]) for name, _ in loss.named_parameters()}
    # a norm's weight has one dimension, beside that of an ensemble
    assert having == {
        name
        for name, params in parts.items()
        for key, value in params.items(True, True)
        if key[-1] == "weight" and value.ndim == 1 + params.ndim
    }


def test_a_decay_of_the_actor_comes_to_the_update(recipes, store_path):
    options = {"dataset": str(store_path), "device": "cpu", "batch_size": 8, "actor_weight_decay": 0.25}
    config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", **options))
    store, cpu = TrajectoryStore.load(store_path), torch.device("cpu")
    update, plain = (
        recipes.build.make_update(each, get_task("PointReach"), store, cpu)
        for each in (config, dataclasses.replace(config, actor_weight_decay=0.0))
    )
    for each in (update, plain):
        each()
    lost = (plain.params["actor_network"] - update.params["actor_network"]).norm().item()
    # of weights that one update at a rate of 1e-3 has hardly moved
    assert lost == pytest.approx(0.25 * 1e-3 * plain.params["actor_network"].norm().item(), rel=0.1)
    assert torch.equal(plain.params["score_network"], update.params["score_network"])


def test_an_option_of_a_new_loss_needs_no_second_declaration(recipes, monkeypatch):
    methods = recipes.methods

    class Loss(methods.SMORELoss):
        def __init__(self, actor_network, *, expectile=0.7, normalize=True):
            raise AssertionError

    monkeypatch.setitem(methods.METHODS, "new", methods.Method(Loss))
    assert recipes.options.method_options("new") == ["expectile", "normalize"]
    assert methods.METHODS["new"].accepts == {"expectile": 0.7, "normalize": True}


def test_smores_defaults_are_its_losss(recipes):
    methods = recipes.methods
    accepts = methods.METHODS["smore"].accepts
    for name in ("formulation", "divergence", "beta", "residual_coef"):
        assert getattr(recipes.options.Config(), name) == accepts[name]


@pytest.mark.parametrize(
    ("task", "given", "stitch"),
    [
        ("Tabletop-push-open", {}, 0.7),
        ("Tabletop-pick-close", {"method": "gcsl"}, 0.7),
        ("Tabletop-push-open", {"goal_stitch": 0.0}, 0.0),
        ("Tabletop-pick", {}, None),
        ("Tabletop-pick", {"goal_stitch": 0.25}, 0.25),
        ("Tabletop-push-open", {"preset": "paper"}, None),
        # none can have it: as if the task said nothing, also in the identity of a cell
        ("Tabletop-push-open", {"method": "wgcsl"}, None),
        ("Tabletop-push-open", {"method": "crl_td"}, None),
        ("Tabletop-push-open", {"method": "gofar"}, None),
        ("Tabletop-push-open", {"pixels": 48}, None),
    ],
)
def test_goals_are_stitched_where_the_task_or_the_user_says_so(recipes, task, given, stitch):
    config = recipes.options.with_defaults(recipes.options.Config(task=task, batch_size=8, **given))
    assert config.goal_stitch == stitch
    if config.pixels:
        return
    data = {key: torch.zeros(2, width) for key, width in (("observation", 10), ("action", 4), ("desired_goal", 6))}
    after = {"observation": torch.zeros(2, 10), "achieved_goal": torch.zeros(2, 6), "done": torch.ones(2, 1).bool()}
    store = SimpleNamespace(data=TensorDict({**data, "achieved_goal": torch.zeros(2, 6), "next": after}, [2]))
    config = dataclasses.replace(config, anchors="uniform")
    sampler = recipes.build.make_sampler(config, get_task(task), store, torch.device("cpu"))
    assert (sampler.stitch, sampler.threshold) == (stitch or 0.0, 0.05)
    assert sampler.goal_parts == ((0, 1), (1, 3), (3, 6))


def test_a_folder_of_both_is_of_use_where_only_the_medium_ones_are_collected(recipes, tmp_path):
    Config, check = recipes.options.Config, recipes.options.check_given
    options = {"task": "AntTgtVel-m-e", "expert_fraction": 0.0, "expert_policy": str(tmp_path)}
    with pytest.raises(ValueError, match=r"^expert_policy: of no use"):
        check(Config(**options))
    (tmp_path / "medium.npz").touch()
    check(Config(**options))
    with pytest.raises(ValueError, match=r"^expert_policy: of no use"):
        check(Config(**options, medium_policy="other.npz"))


def test_a_dataset_too_small_for_a_window_is_told_apart_from_a_window_out_of_range(recipes, store_path, tmp_path):
    # 20 trajectories of 50 rows; SMORe draws two rows for each of a batch: 8 x 2 x 59 + 50 is less than 1000, 60 is not
    store, task, cpu = TrajectoryStore.load(store_path), get_task("PointReach"), torch.device("cpu")

    def sampler(batch_size, resident):
        options = {"batch_size": batch_size, "resident": resident, "mapped": str(tmp_path), "device": "cpu"}
        config = recipes.options.with_defaults(recipes.options.Config(task="PointReach", **options))
        return recipes.build.make_sampler(config, task, store, cpu)

    sampler(59, 994)
    with pytest.raises(ValueError, match=r"resident= expects from 994 .* to 999 rows .* got 993"):
        sampler(59, 993)
    with pytest.raises(
        ValueError, match=r"^resident: the dataset of 1,000 rows is too small .* 1,010 .*drop resident=\.$"
    ):
        sampler(60, 999)
