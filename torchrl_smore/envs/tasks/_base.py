"""What a task is (what is observed, what counts as success, how its environment is built), and the registry of all."""

from __future__ import annotations

import functools
import importlib
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchrl_smore._errors import check_whole, unknown_name
from torchrl_smore.envs._gym import Env
from torchrl_smore.envs._opengl import OpenGL
from torchrl_smore.envs.batch import BatchEnv, GymBatch
from torchrl_smore.envs.experts._base import Expert, PlanningExpert
from torchrl_smore.envs.experts.actor_file import refuse_to_act
from torchrl_smore.envs.pixels import Painter
from torchrl_smore.envs.tasks._source import source_sha256
from torchrl_smore.envs.wrappers import GoalTaskWrapper


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
        data_tasks: names of the tasks whose episodes a dataset for this one may consist of, of the first where one is
            collected; none: its own.

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
    data_tasks: tuple[str, ...] = ()
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
        """The task whose episodes a dataset consists of that is collected for this one."""
        return get_task(self.data_tasks[0]) if self.data_tasks else self

    def teacher(self) -> Expert | PlanningExpert:
        """What a network is taught by; see ``recipes/distill_expert.py``."""
        return self.make_expert() if self.make_teacher is None else self.make_teacher()

    @property
    def bundled_actors(self) -> Path | None:
        """Folder with ``expert.npz`` and ``meta.json``, which says how it was made; or ``None``.

        With ``medium.npz`` where the dataset has medium trajectories.
        """
        return None if self.actors is None else Path(__file__).parents[1] / "assets" / "actors" / self.actors

    @property
    def success_rule(self) -> str:
        """The rule of :meth:`reached`, in words."""
        bound = "less than" if self.strict else "at most"
        what = "" if not self.goal_parts else f", for {', '.join(name for name, _, _ in self.goal_parts)} each"
        return f"Euclidean distance between achieved and desired goal of {bound} {self.threshold:g}{what}"

    @property
    def definition(self) -> dict[str, Any]:
        """What the task declares that its data depend on, in values that JSON gives back as they are.

        It is part of the metadata of a collected dataset.
        """
        low_high = None if self.goal_range is None else [list(map(float, bound)) for bound in self.goal_range]
        return {
            "horizon": int(self.horizon),
            "threshold": float(self.threshold),
            "success_rule": self.success_rule,
            "observation_columns": list(self.observation_columns),
            "goal_columns": list(self.goal_columns),
            "action_columns": list(self.action_columns),
            "goal_parts": [list(part) for part in self.goal_parts],
            "goal_range": low_high,
        }

    @property
    def source_sha256(self) -> str | None:
        """Digest of the files that define environment, expert and falls of a task of one's own; else ``None``."""
        return source_sha256(
            (self.make_base_env, self.make_expert, self.make_teacher, self.make_batch, self.has_fallen)
        )

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
            TypeError: if ``num_trajectories`` is no whole number.
        """
        if check_whole("num_trajectories", num_trajectories) < 0:
            raise ValueError(f"{self.name}: num_trajectories must be at least 0, got {num_trajectories}.")
        if expert_fraction is not None and not 0.0 <= expert_fraction <= 1.0:
            raise ValueError(f"{self.name}: set expert_fraction in [0, 1], got {expert_fraction}.")
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
        """What draws its states as pictures.

        Args:
            size: height and width, in pixels.
            opengl: the library that draws; see :func:`render_episode`.

        Raises:
            ValueError: if the task has none, or for a size out of range.
            RenderError: if there is no OpenGL; says what to install.
        """
        if self.make_painter is None:
            raise ValueError(f"{self.name} has no pictures: its observation does not say all that is seen.")
        return self.make_painter(size, opengl)

    def make_batch_env(self, num_envs: int, action_noise: float = 0.0) -> BatchEnv:
        """Builds environments that are stepped together in this process.

        Args:
            num_envs: how many.
            action_noise: standard deviation of the noise on their actions, in units of the action, at least 0.
        """
        if self.make_batch is not None:
            return self.make_batch(num_envs, action_noise)
        return GymBatch(self.make_env, num_envs, action_noise)


TASKS: dict[str, Task] = {}
"""Every task by name."""


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
    found = getattr(imported, name, None)
    if not isinstance(found, Task):
        # what has that name there may be the environment's class
        found = TASKS.get(name)
    if found is None:
        known = [key for key, value in vars(imported).items() if isinstance(value, Task)]
        raise unknown_name(f"task of {module}", name, known)
    return found


def task_names() -> tuple[str, ...]:
    """Names of all tasks, in the order of the registry."""
    return tuple(TASKS)
