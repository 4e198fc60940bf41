"""The tasks: what is observed, what counts as success, how the environment and its expert are built."""

from __future__ import annotations

import functools
import importlib
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torchrl_smore._errors import unknown_name
from torchrl_smore._falls import ant_has_fallen
from torchrl_smore.envs._gym import Env
from torchrl_smore.envs._opengl import OpenGL
from torchrl_smore.envs.batch import BatchEnv, GymBatch
from torchrl_smore.envs.experts import (
    Expert,
    FetchPickExpert,
    FetchPushExpert,
    FetchReachExpert,
    FetchSlideExpert,
    FetchSlideReactiveExpert,
    HandReachExpert,
    PlanningExpert,
    PointExpert,
    ReacherExpert,
    SawyerDoorExpert,
    SawyerReachExpert,
    TabletopExpert,
)
from torchrl_smore.envs.experts.actor_file import refuse_to_act
from torchrl_smore.envs.locomotion import make_ant, make_half_cheetah
from torchrl_smore.envs.pixels import Painter, PointPainter, TabletopPainter
from torchrl_smore.envs.point import FOUR_ROOMS, GOAL_RADIUS, HALF_WIDTH, PointBatch, PointEnv, PointWorld
from torchrl_smore.envs.reacher import make_reacher_env
from torchrl_smore.envs.sawyer import DOOR, REACH, SawyerEnv, SawyerWorld
from torchrl_smore.envs.tabletop import Kind, TabletopEnv
from torchrl_smore.envs.wrappers import GoalTaskWrapper, make_robotics_env


@dataclass(frozen=True)
class Task:
    """A goal-reaching task with a fixed horizon.

    Episodes last exactly ``horizon`` steps and never end on success. The reward of a step is 1 if the goal is reached
    after it, else 0; a robot that has fallen stays as it is for the rest of the episode and earns 0.

    Attributes:
        name: short name, as in the paper.
        observation_columns: meaning and unit of each column of ``observation``.
        goal_columns: meaning and unit of each column of ``achieved_goal`` and ``desired_goal``.
        action_columns: meaning of each action component; all lie in ``[-1, 1]``.
        threshold: distance that counts as reached, in the unit of the goal.
        make_base_env: builds the simulator's environment, before it is wrapped.
        make_expert: builds the scripted expert; :func:`~torchrl_smore.envs.begin_episodes` says how to use it.
        make_teacher: builds a memoryless controller where the scripted expert plans ahead, so that its actions do not
            follow from what is seen, from its model (a file) or that of the package; ``None``: the scripted expert is
            memoryless. See :meth:`teacher`.
        make_batch: builds a natively vectorised :class:`~torchrl_smore.envs.batch.BatchEnv` from a number of
            environments and the action noise; ``None`` steps ``make_env()`` that many times.
        description: one sentence for people.
        paper_note: how the simulator differs from the one the paper used.
        horizon: steps in an episode.
        blank_columns: columns of ``observation`` that are always 0 here. Data of the paper's simulator have something
            else there, which is to be set to 0 when they are read.
        zero_columns: that the observation of other versions of the simulator has at its end, all 0 there. An actor that
            was trained with them acts here as if it saw them.
        strict: whether a distance of exactly ``threshold`` is too far.
        has_fallen: from observations ``[*, ds]`` to booleans ``[*]``: whether the episode is over there; ``None``:
            nowhere.
        gammas: discounts whose returns an evaluation reports.
        expert_episodes: expert trajectories in the paper's dataset; ``None`` where it names a share of them instead.
        rest: the behaviour of the dataset's other trajectories.
        actors: folder below ``assets/actors`` with the trained expert (of FetchSlide the landing model of one), and a
            medium actor where ``rest`` says so, that come with this package.
        expert_noise: standard deviation of the noise on the actions of that expert in a dataset, where none is asked
            for: the published experts were networks with noise on their actions.
        expert_random_prob: probability in each step that a uniform action replaces that expert's, likewise.
        goal_parts: name and columns (first, one past the last) of each thing that the goal is about, if it is about
            several: each must then be within ``threshold`` of its own goal.
        make_painter: builds what draws its states as pictures of a given size by a given OpenGL library (``None``: see
            :func:`render_episode`); ``None``: its observation does not say all that is seen.
        goal_range: smallest and largest value of each column of the goals that episodes ask for; ``None``: not stated.
        data_task: name of the task whose episodes a dataset for this one consists of; ``None``: its own.

    Everything must be importable by name (no lambdas) for the task to reach other processes.
    """

    name: str
    observation_columns: tuple[str, ...]
    goal_columns: tuple[str, ...]
    action_columns: tuple[str, ...]
    threshold: float
    make_base_env: Callable[[], Env]
    make_expert: Callable[[], Expert | PlanningExpert]
    description: str
    paper_note: str
    make_teacher: Callable[..., Expert] | None = None
    make_batch: Callable[[int, float], BatchEnv] | None = None
    horizon: int = 50
    blank_columns: tuple[int, ...] = ()
    zero_columns: int = 0
    strict: bool = False
    has_fallen: Callable[[Any], Any] | None = None
    gammas: tuple[float, ...] = (0.98, 0.99)
    expert_episodes: int | None = None
    rest: Literal["random", "medium"] = "random"
    actors: str | None = None
    expert_noise: float = 0.0
    expert_random_prob: float = 0.0
    goal_parts: tuple[tuple[str, int, int], ...] = ()
    goal_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    data_task: str | None = None
    make_painter: Callable[[int, OpenGL | None], Painter] | None = None

    @property
    def observation_dim(self) -> int:
        """Number of columns of ``observation``."""
        return len(self.observation_columns)

    @property
    def goal_dim(self) -> int:
        """Number of columns of ``achieved_goal`` and ``desired_goal``."""
        return len(self.goal_columns)

    @property
    def action_dim(self) -> int:
        """Number of action components."""
        return len(self.action_columns)

    @property
    def scripted(self) -> bool:
        """Whether the task has a scripted expert; collecting on one without takes a trained actor."""
        return getattr(self.make_expert, "func", None) is not refuse_to_act

    @property
    def data_source(self) -> Task:
        """The task whose episodes a dataset for this one consists of."""
        return self if self.data_task is None else get_task(self.data_task)

    def teacher(self) -> Expert | PlanningExpert:
        """What a network is taught by; see ``recipes/distill_expert.py``."""
        return self.make_expert() if self.make_teacher is None else self.make_teacher()

    @property
    def bundled_actors(self) -> Path | None:
        """Folder with ``expert.npz`` and ``meta.json``, which says how it was made; or ``None``.

        With ``medium.npz`` where the dataset has medium trajectories.
        """
        return None if self.actors is None else Path(__file__).parent / "assets" / "actors" / self.actors

    @property
    def success_rule(self) -> str:
        """The rule of :meth:`reached`, in words."""
        bound = "less than" if self.strict else "at most"
        what = "" if not self.goal_parts else f", for {', '.join(name for name, _, _ in self.goal_parts)} each"
        return f"Euclidean distance between achieved and desired goal of {bound} {self.threshold:g}{what}"

    def reached(self, achieved: Any, goal: Any) -> Any:
        """Whether goals are reached: ``|achieved - goal| <= threshold``, as the simulators' sparse reward has it.

        (Their ``is_success`` is strict; the two differ only at equality.) With ``strict`` it is ``<``. With
        :attr:`goal_parts` it has to hold for each of them.

        Args:
            achieved: shape ``[*, dg]``, a numpy array or a torch tensor on any device.
            goal: the same kind, of a shape that broadcasts with ``achieved``.

        Returns:
            Booleans of shape ``[*]``, of the same kind and device.
        """
        parts = self.parts_reached(achieved, goal).values()
        return functools.reduce(operator.and_, parts)

    def parts_reached(self, achieved: Any, goal: Any) -> dict[str, Any]:
        """Whether each part of goals is reached, by name; the whole as ``"goal"`` where there are no parts.

        Args:
            achieved: as in :meth:`reached`.
            goal: as in :meth:`reached`.

        Returns:
            Booleans of shape ``[*]`` each.
        """
        squared = (achieved - goal) ** 2
        parts = self.goal_parts or (("goal", 0, self.goal_dim),)
        distance = {name: squared[..., first:stop].sum(-1) ** 0.5 for name, first, stop in parts}
        return {name: own < self.threshold if self.strict else own <= self.threshold for name, own in distance.items()}

    def succeeded(self, observation: Any, achieved: Any, goal: Any) -> Any:
        """Whether goals are :meth:`reached` by a robot that has not fallen: what the reward of a step counts.

        Args:
            observation: after the step, shape ``[*, ds]``, a numpy array or a torch tensor.
            achieved: shape ``[*, dg]``, of the same kind.
            goal: the same kind, of a shape that broadcasts with ``achieved``.

        Returns:
            Booleans of shape ``[*]``, of the same kind.
        """
        reached = self.reached(achieved, goal)
        return reached if self.has_fallen is None else reached & ~self.has_fallen(observation)

    def composition(self, num_trajectories: int, expert_fraction: float | None = None) -> dict[str, int]:
        """How many trajectories of each behaviour the task's dataset has.

        Args:
            num_trajectories: in all.
            expert_fraction: share of the expert's, in ``[0, 1]``; ``None``: ``expert_episodes``, or 0.1.

        Returns:
            ``expert_episodes``, ``medium_episodes`` and ``random_episodes`` of
            :func:`~torchrl_smore.envs.collect.collect`.

        Raises:
            ValueError: if there are fewer trajectories than the expert's, or the share lies outside its range.
        """
        if expert_fraction is None and self.expert_episodes is not None:
            experts = self.expert_episodes
        else:
            experts = round(num_trajectories * (0.1 if expert_fraction is None else expert_fraction))
        if not 0 <= experts <= num_trajectories:
            raise ValueError(
                f"{self.name} has {experts} expert trajectories among num_trajectories={num_trajectories}: raise that, "
                "or set expert_fraction in [0, 1]."
            )
        rest = num_trajectories - experts
        counts = {"expert": experts, "medium": 0, "random": 0} | {self.rest: rest}
        return {f"{kind}_episodes": count for kind, count in counts.items()}

    def make_env(self) -> Env:
        """Builds the environment: float32 observations, 0/1 reward, ``info["is_success"]``, never truncated.

        Raises:
            ImportError: if a package the simulator needs is missing; says what to install.
        """
        return GoalTaskWrapper(self.make_base_env(), self.reached)

    def painter(self, size: int, opengl: OpenGL | None = None) -> Painter:
        """What draws its states as pictures of ``size`` by ``size`` pixels, by a library as in :func:`render_episode`.

        Raises:
            ValueError: if the task has none, or for a size out of range.
            RenderError: if there is no OpenGL; says what to install.
        """
        if self.make_painter is None:
            raise ValueError(f"{self.name} has no pictures: its observation does not say all that is seen.")
        return self.make_painter(size, opengl)

    def make_batch_env(self, num_envs: int, action_noise: float = 0.0) -> BatchEnv:
        """Builds ``num_envs`` environments that are stepped together in this process."""
        if self.make_batch is not None:
            return self.make_batch(num_envs, action_noise)
        return GymBatch(self.make_env, num_envs, action_noise)


def get_task(name: str | Task) -> Task:
    """Returns the task of that name; a :class:`Task` is returned as it is.

    ``"module:NAME"`` imports the module, from the working directory too, and returns the :class:`Task` that is its
    attribute ``NAME`` or that it has registered under that name.

    Raises:
        ValueError: for an unknown name; proposes the nearest one.
    """
    if isinstance(name, Task):
        return name
    module, colon, own = name.partition(":")
    if colon:
        return _task_of_module(module, own)
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def _task_of_module(module: str, name: str) -> Task:
    full = f"{module}:{name}"
    if not name or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"task {full!r}: expected MODULE:NAME, such as my_module:MyTask.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"task {full!r}: there is no module {error.name!r} in {here} or on sys.path.") from error
    found = getattr(imported, name, TASKS.get(name))
    if not isinstance(found, Task):
        known = [key for key, value in vars(imported).items() if isinstance(value, Task)]
        raise unknown_name(f"task of {module}", name, known)
    return found


def task_names() -> tuple[str, ...]:
    """Names of all tasks, in the order of the registry."""
    return tuple(TASKS)


def _axes(what: str, unit: str, axes: str = "xyz") -> tuple[str, ...]:
    return tuple(f"{what} {axis} [{unit}]" for axis in axes)


_GRIPPER = _axes("gripper position", "m")
_FINGERS = ("right finger displacement [m]", "left finger displacement [m]")
_GRIPPER_VELOCITY = _axes("gripper velocity", "m/step")
_FINGER_VELOCITY = ("right finger velocity [m/step]", "left finger velocity [m/step]")
_REACH_COLUMNS = (*_GRIPPER, *_FINGERS, *_GRIPPER_VELOCITY, *_FINGER_VELOCITY)
_BLOCK_COLUMNS = (
    *_GRIPPER,
    *_axes("block position", "m"),
    *_axes("block position minus gripper position", "m"),
    *_FINGERS,
    *_axes("block rotation (XYZ Euler angle)", "rad"),
    *_axes("block velocity minus gripper velocity", "m/step"),
    *_axes("block angular velocity", "rad/step"),
    *_GRIPPER_VELOCITY,
    *_FINGER_VELOCITY,
)
_FETCH_ACTION = (*_axes("gripper displacement", "0.05 m"), "finger opening")
_FETCH_NOTE = (
    "The paper used {old} (mujoco-py); {new} of gymnasium-robotics has the same observations, actions, goals and "
    "threshold, but another physics engine version and start poses that differ slightly, so data from the old "
    "environment are slightly off-distribution. The versions in between (v2 with mujoco >= 3, v3) are broken: "
    "misplaced robot, block under the table."
)
_HAND_JOINTS = (
    *("WRJ1", "WRJ0"),
    *("FFJ3", "FFJ2", "FFJ1", "FFJ0"),
    *("MFJ3", "MFJ2", "MFJ1", "MFJ0"),
    *("RFJ3", "RFJ2", "RFJ1", "RFJ0"),
    *("LFJ4", "LFJ3", "LFJ2", "LFJ1", "LFJ0"),
    *("THJ4", "THJ3", "THJ2", "THJ1", "THJ0"),
)
_HAND_UNDRIVEN = ("FFJ0", "MFJ0", "RFJ0", "LFJ0")  # dragged along by the joint before them
_FINGERTIPS = tuple(
    column
    for finger in ("forefinger", "middle finger", "ring finger", "little finger", "thumb")
    for column in _axes(f"{finger} tip position", "m")
)
_HAND_NOTE = (
    "The paper used HandReach-v0 (mujoco-py); HandReach-v3 of gymnasium-robotics has the same observations, actions, "
    "goals and threshold, but another physics engine version, so data from the old environment are slightly "
    "off-distribution. Before v3 episodes did not start in the documented pose."
)
_POINT_NOTE = (
    "The paper used {old} of the multiworld port in WGCSL. Box, step, radius and walls are the published ones; "
    "see torchrl_smore.envs.point for how collisions differ. The reward there is dense; ours is 0/1."
)
_ROOMS = PointWorld(FOUR_ROOMS)
_HAND = _axes("hand position", "m")
_SAWYER_NOTE = (
    "The paper used {old} of the multiworld port in WGCSL (mujoco-py, a seven-joint arm with meshes). This is a small "
    "model of our own with the published state, 2 cm steps, hand box, goals and threshold; see "
    "torchrl_smore.envs.sawyer for what differs. {more}"
)
_REACHER = Task(
    name="Reacher",
    observation_columns=(
        "cosine of the shoulder angle",
        "cosine of the elbow angle",
        "sine of the shoulder angle",
        "sine of the elbow angle",
        "0 (in the paper's data: x of the original target) [m]",
        "0 (in the paper's data: y of the original target) [m]",
        "shoulder velocity [rad/s]",
        "elbow velocity [rad/s]",
        *_axes("fingertip position", "m", "xy"),
        "0 (fingertip height minus target height) [m]",
    ),
    goal_columns=_axes("fingertip position", "m", "xy"),
    action_columns=("shoulder torque [200 N m]", "elbow torque [200 N m]"),
    threshold=0.05,
    goal_range=((-0.2,) * 2, (0.2,) * 2),
    make_base_env=make_reacher_env,
    make_expert=ReacherExpert,
    description="Swing a two-link arm until its fingertip is at a point of the plane.",
    paper_note=(
        "The paper used Reacher-v2 (mujoco-py) in WGCSL's goal wrapper; this is Reacher-v5 of gymnasium with the same "
        "arm, 11 columns, goals (uniform in a disc of radius 0.2) and threshold. Columns 4 and 5, which hold the "
        "original target there and contradict a relabelled goal, are 0 here; recipes do the same to files that they "
        "read."
    ),
    blank_columns=(4, 5, 10),
)
_ANT_CONTACT_COLUMNS = 84  # contact forces, which Ant-v2 and -v3 append and leave at 0
_VELOCITY_NOTE = (
    "The paper used the {robot}-*-v2 data of D4RL (mujoco-py); this is version 5 of gymnasium's robot, with another "
    "physics engine version, and recipes/train_expert.py trains the experts. Goal, success rule and the discount of "
    "0.999 are those of the official code. The printed returns exceed 100, so they are not at a discount of 0.99."
)
_FALL_NOTE = (
    " D4RL's observation has 84 more columns, contact forces that are all 0 there. A fall ends an episode there; here "
    "the Ant stays as it fell and earns nothing more, so that episodes have one length."
)


def _fetch(
    name: str,
    simulator: str,
    expert: Callable[[], Expert | PlanningExpert],
    goal_of: str,
    description: str,
    **options: Any,
) -> Task:
    columns = _REACH_COLUMNS if goal_of == "gripper" else _BLOCK_COLUMNS
    return Task(
        name=name,
        observation_columns=tuple(column.replace("block", goal_of) for column in columns),
        goal_columns=_axes(f"{goal_of} position", "m"),
        action_columns=_FETCH_ACTION,
        threshold=0.05,
        make_base_env=partial(make_robotics_env, f"{simulator}-v4"),
        make_expert=expert,
        description=description,
        paper_note=_FETCH_NOTE.format(old=f"{simulator}-v1", new=f"{simulator}-v4"),
        **options,
    )


def _point(name: str, simulator: str, world: PointWorld, description: str) -> Task:
    return Task(
        name=name,
        observation_columns=_axes("position", "1", "xy"),
        goal_columns=_axes("position", "1", "xy"),
        action_columns=_axes("displacement", "1", "xy"),
        threshold=GOAL_RADIUS,
        make_base_env=partial(PointEnv, world),
        make_expert=partial(PointExpert, world),
        make_batch=partial(PointBatch, world),
        make_painter=partial(PointPainter, world),
        goal_range=((-HALF_WIDTH,) * 2, (HALF_WIDTH,) * 2),
        description=description,
        paper_note=_POINT_NOTE.format(old=simulator),
    )


_HAND_REACH = Task(
    name="HandReach",
    observation_columns=(
        *(f"{joint} angle [rad]" for joint in _HAND_JOINTS),
        *(f"{joint} velocity [rad/s]" for joint in _HAND_JOINTS),
        *_FINGERTIPS,
    ),
    goal_columns=_FINGERTIPS,
    action_columns=tuple(
        f"{joint} target angle [half of its range, from the middle]"
        for joint in _HAND_JOINTS
        if joint not in _HAND_UNDRIVEN
    ),
    threshold=0.01,
    make_base_env=partial(make_robotics_env, "HandReach-v3"),
    make_expert=HandReachExpert,
    description="Bring the thumb and one finger of a hand together, or, one time in ten, keep all tips where they are.",
    paper_note=_HAND_NOTE,
)


def _sawyer(name: str, simulator: str, world: SawyerWorld, expert: Callable[[], Expert], description: str) -> Task:
    door = world.goal == "door"
    angle = ("door angle [rad]",) if door else ()
    more = (
        "Success is the published reward's (0.06 rad), in the return and in the success rate; the official success "
        "rate counts what is within 0.02 rad, its return what is within 0.06."
        if door
        else "Episodes start in the middle of the hand's box."
    )
    return Task(
        name=name,
        observation_columns=(*_HAND, *angle),
        goal_columns=angle or _HAND,
        action_columns=_axes("hand displacement", "0.02 m"),
        threshold=0.06,
        goal_range=(world.goal_low, world.goal_high),
        make_base_env=partial(SawyerEnv, world),
        make_expert=expert,
        description=description,
        paper_note=_SAWYER_NOTE.format(old=simulator, more=more),
    )


_TABLETOP_GOAL = ("drawer opening [m]", *_axes("can position", "m", "xy"), *_axes("cube position", "m"))
_TABLETOP_NOTE = (
    "The paper's image tasks (Fig. 3, {original}) are those of stable contrastive RL in PyBullet; this is a scene of "
    "our own with the same kinds of primitives, see torchrl_smore.envs.tabletop. Tolerances there: 0.065 and 0.08 m in "
    "a larger scene."
)


def _tabletop(name: str, kind: Kind, original: str, description: str, horizon: int = 400) -> Task:
    return Task(
        name=name,
        observation_columns=(*_GRIPPER, "distance of each finger from the middle [m]", *_TABLETOP_GOAL),
        goal_columns=_TABLETOP_GOAL,
        action_columns=(*_axes("gripper displacement", "0.04 m"), "finger opening [0.03 m each]"),
        threshold=0.05,
        make_base_env=partial(TabletopEnv, kind),
        make_expert=TabletopExpert,
        description=description,
        paper_note=_TABLETOP_NOTE.format(original=original),
        horizon=horizon,
        goal_parts=(("drawer", 0, 1), ("can", 1, 3), ("cube", 3, 6)),
        data_task=None if kind == "primitives" else "Tabletop",
        make_painter=TabletopPainter,
    )


_VELOCITY_GOAL = ("x velocity [m/s]",)
_JOINTS = tuple(f"{side} {joint}" for side in ("back", "front") for joint in ("thigh", "shin", "foot"))
_CHEETAH_COLUMNS = (
    "torso height [m]",
    "torso pitch [rad]",
    *(f"{joint} angle [rad]" for joint in _JOINTS),
    "x velocity [m/s]",
    "z velocity [m/s]",
    "torso pitch velocity [rad/s]",
    *(f"{joint} angular velocity [rad/s]" for joint in _JOINTS),
)
_LEGS = tuple(
    f"{leg} {joint}" for leg in ("front left", "front right", "back left", "back right") for joint in ("hip", "ankle")
)
_ANT_COLUMNS = (
    "torso height [m]",
    *(f"torso orientation quaternion {axis}" for axis in "wxyz"),
    *(f"{joint} angle [rad]" for joint in _LEGS),
    "x velocity [m/s]",
    "y velocity [m/s]",
    "z velocity [m/s]",
    *_axes("torso angular velocity", "rad/s"),
    *(f"{joint} angular velocity [rad/s]" for joint in _LEGS),
)
# the order of gymnasium's actuators, which is not that of the joints
_ANT_ACTION = tuple(f"{_LEGS[number]} torque [150 N m]" for number in (6, 7, 0, 1, 2, 3, 4, 5))
_GEARS = (120, 90, 60, 120, 60, 30)
_CHEETAH_ACTION = tuple(f"{joint} torque [{gear} N m]" for joint, gear in zip(_JOINTS, _GEARS))


def _target_velocity(robot: Literal["Cheetah", "Ant"], rest: Literal["random", "medium"]) -> Task:
    cheetah, letter = robot == "Cheetah", rest[0]
    name, target = f"{robot}TgtVel-{letter}-e", 11 if cheetah else 5
    return Task(
        name=name,
        observation_columns=_CHEETAH_COLUMNS if cheetah else _ANT_COLUMNS,
        goal_columns=_VELOCITY_GOAL,
        action_columns=_CHEETAH_ACTION if cheetah else _ANT_ACTION,
        threshold=0.5,
        goal_range=((float(target),), (float(target),)),
        make_base_env=make_half_cheetah if cheetah else make_ant,
        make_expert=partial(refuse_to_act, name),
        description=f"Run forwards at {target} m/s; the data are 30 expert episodes, the rest {rest}.",
        paper_note=_VELOCITY_NOTE.format(robot="halfcheetah" if cheetah else "ant") + ("" if cheetah else _FALL_NOTE),
        horizon=1000,
        zero_columns=0 if cheetah else _ANT_CONTACT_COLUMNS,
        strict=True,
        has_fallen=None if cheetah else ant_has_fallen,
        gammas=(0.98, 0.99, 0.999),
        expert_episodes=30,
        rest=rest,
        actors=f"{robot}TgtVel",
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _fetch(
            "FetchReach",
            "FetchReach",
            FetchReachExpert,
            "gripper",
            "Move the gripper to a point in the air.",
            goal_range=((1.19, 0.59, 0.38), (1.5, 0.9, 0.69)),
        ),
        _fetch(
            "FetchPush",
            "FetchPush",
            FetchPushExpert,
            "block",
            "Push a block to a point on the table.",
            goal_range=((1.19, 0.59, 0.42), (1.5, 0.9, 0.43)),
            actors="FetchPush",
            expert_noise=0.2,
            expert_random_prob=0.1,
        ),
        _fetch(
            "FetchPick",
            "FetchPickAndPlace",
            FetchPickExpert,
            "block",
            "Carry a block to a point on the table or, half the time, in the air.",
            goal_range=((1.19, 0.59, 0.42), (1.5, 0.9, 0.88)),
            actors="FetchPick",
            expert_noise=0.2,
            expert_random_prob=0.05,
        ),
        _fetch(
            "FetchSlide",
            "FetchSlide",
            FetchSlideExpert,
            "puck",
            "Strike a puck so that it slides to a point on a long table, out of the robot's reach.",
            goal_range=((1.09, 0.44, 0.41), (1.7, 1.05, 0.42)),
            actors="FetchSlide",
            make_teacher=FetchSlideReactiveExpert,
        ),
        _HAND_REACH,
        _point("PointReach", "Point2DLargeEnv-v1", PointWorld(), "Move a point to within 1 of another, in a box."),
        _point("PointRooms", "Point2D-FourRoom-v1", _ROOMS, "The same in four rooms with wide doors."),
        _REACHER,
        _sawyer("SawyerReach", "SawyerReachXYZEnv-v1", REACH, SawyerReachExpert, "Move a hand to a point in a box."),
        _sawyer("SawyerDoor", "SawyerDoor-v0", DOOR, SawyerDoorExpert, "Open a door by an angle, with a hook."),
        _target_velocity("Cheetah", "medium"),
        _target_velocity("Cheetah", "random"),
        _target_velocity("Ant", "medium"),
        _target_velocity("Ant", "random"),
        _tabletop(
            "Tabletop",
            "primitives",
            "whose data are single primitives",
            "One of moving a drawer, carrying a cube and pushing a can: what data for the other tabletop tasks hold.",
            horizon=60,
        ),
        _tabletop("Tabletop-drawer", "drawer", "seed 49", "Open a drawer, or shut it."),
        _tabletop("Tabletop-pick", "pick", "seed 12", "Carry a cube to a tray or to the top of a cabinet."),
        _tabletop("Tabletop-pick-close", "pick-close", "seed 37", "Carry a cube into a drawer, then shut it."),
        _tabletop(
            "Tabletop-push-open", "push-open", "seed 31", "Push a can out from before a drawer, then open the drawer."
        ),
    )
}
"""Every task by name."""
