"""Tasks of one's own, from a gymnasium environment and a few words about it."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import math
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_smore._errors import check_whole
from torchrl_smore.envs._gym import Env, Wrapper, gymnasium, spaces
from torchrl_smore.envs.experts import Expert, PlanningExpert
from torchrl_smore.envs.experts.actor_file import refuse_to_act
from torchrl_smore.envs.tasks import TASKS, Task
from torchrl_smore.envs.wrappers import GOAL_KEYS

Goals = tuple[Sequence[float], Sequence[float]] | Callable[[np.random.Generator], Any]

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_SMALL_SEEDS = 1 << 32
_LOOKED_AT = 5  # steps of an episode, which tell whether it repeats itself
_GOAL_STREAM = 0x60A1  # keeps goals apart from the environment's own draws, which use the seed itself


def register_task(
    name: str,
    env: str | Callable[[], Env],
    *,
    threshold: float,
    horizon: int,
    goal_columns: Sequence[int] | None = None,
    goals: Goals | None = None,
    make_expert: Callable[[], Expert | PlanningExpert] | None = None,
    has_fallen: Callable[[Any], Any] | None = None,
    observation_names: Sequence[str] | None = None,
    goal_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    gammas: tuple[float, ...] = (0.98, 0.99),
    description: str = "",
) -> Task:
    """Makes a task of an environment and registers it, so that ``get_task(name)`` and every recipe find it.

    The environment's rewards, time limit and ends are not used: a reward is 1 where ``|achieved - desired| <=
    threshold`` after the step, and episodes last ``horizon`` steps. Its actions are scaled from its own bounds to
    ``[-1, 1]``. It is built here, and looked at: an episode of a few steps is begun twice with one seed, another one
    between them. Seeds are whole numbers below ``2**64``; where its ``reset`` takes none beyond 32 bits, it gets them
    modulo ``2**32``.

    Args:
        name: letters, digits, ``.``, ``-``, ``_``; of no other task.
        env: id of a gymnasium environment, or what builds one. It may continue after it has said ``terminated`` or
            ``truncated``, and must not reset itself. Its observation is a Dict of ``observation``, ``achieved_goal``
            and ``desired_goal``, or a vector, then with ``goal_columns`` and ``goals``.
        threshold: Euclidean distance that counts as reached, positive, in the unit of the goal.
        horizon: steps of an episode, at least 2.
        goal_columns: columns of a vector observation that are the achieved goal.
        goals: where desired goals come from, for vector observations: smallest and largest value of each column, to be
            drawn from uniformly, or a function of a generator that returns one. The goal depends on the seed of
            ``reset`` alone and stays for the episode.
        make_expert: builds an expert, see :data:`~torchrl_smore.envs.Expert`; ``None``: data are random or come from
            an actor file, or from elsewhere.
        has_fallen: from observations ``[*, ds]`` to booleans ``[*]``: states in which nothing more can be done. An
            episode stays there. ``None``: there are none.
        observation_names: meaning and unit of each column; numbers by default.
        goal_names: likewise; by default those of ``goal_columns``, or numbers.
        action_names: likewise.
        gammas: discounts whose returns an evaluation reports, at least one, in ``(0, 1]``.
        description: one sentence for people.

    Returns:
        The task.

    Raises:
        ValueError: for an argument out of its range or a name that is taken, an environment that is none of the above
            or does not repeat itself under one seed, or functions that are not importable by name.
        TypeError: if ``horizon`` or one of ``goal_columns`` is no whole number.
        ImportError: if gymnasium is missing.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a name of letters, digits, '.', '-' and '_', got {name!r}.")
    if name in TASKS:
        raise ValueError(f"there is a task {name!r} already.")
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold must be positive, got {threshold}.")
    horizon = check_whole("horizon", horizon)
    if horizon < 2:
        raise ValueError(f"horizon must be at least 2, got {horizon}.")
    gammas = _floats(gammas)
    if not gammas or not all(0 < gamma <= 1 for gamma in gammas):
        raise ValueError(f"gammas must be one or more discounts in (0, 1], got {gammas}.")
    if make_expert is not None and not callable(make_expert):
        raise ValueError(f"make_expert must be what builds an expert, got {make_expert!r}.")
    columns = None if goal_columns is None else _columns(goal_columns)
    make_base_env = partial(_own_env, _KnownId(env) if isinstance(env, str) else env, columns, goals, has_fallen)
    with contextlib.closing(make_base_env()) as built:
        if has_fallen is not None:
            _check_rule(name, has_fallen, built)
        widths = _widths(name, built)
    names = {"observation": observation_names, "desired_goal": goal_names, "action": action_names}
    texts = {key: _names(key, given, widths[key]) for key, given in names.items()}
    if goal_names is None and columns is not None:
        texts["desired_goal"] = tuple(texts["observation"][column] for column in columns)
    source = env if isinstance(env, str) else f"{env.__module__}.{getattr(env, '__qualname__', env)}"
    advice = "Give register_task make_expert, pass an actor file as expert_policy, or collect with expert_fraction=0."
    task = Task(
        name=name,
        observation_columns=texts["observation"],
        goal_columns=texts["desired_goal"],
        action_columns=texts["action"],
        threshold=float(threshold),
        make_base_env=make_base_env,
        make_expert=partial(refuse_to_act, name, advice) if make_expert is None else make_expert,
        description=description,
        paper_note=f"{source}; not a task of the paper.",
        horizon=horizon,
        has_fallen=has_fallen,
        gammas=gammas,
        goal_range=None if goals is None or callable(goals) else (_floats(goals[0]), _floats(goals[1])),
    )
    try:
        pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{name}: env, goals, make_expert and has_fallen must be functions or classes of a module, for they are "
            f"imported by name in other processes (no lambdas): {error}"
        ) from error
    TASKS[name] = task
    return task


def _own_env(
    source: str | Callable[[], Env],
    columns: tuple[int, ...] | None,
    goals: Goals | None,
    has_fallen: Callable[[Any], Any] | None,
) -> Env:
    """The environment with a Dict observation, actions in ``[-1, 1]`` and no end but a fall."""
    env = _made(source) if isinstance(source, str) else source()
    with contextlib.ExitStack() as opened:
        opened.callback(env.close)
        whole = _with_goals(env, columns, goals, has_fallen)
        opened.pop_all()
    return whole


def _with_goals(
    env: Env, columns: tuple[int, ...] | None, goals: Goals | None, has_fallen: Callable[[Any], Any] | None
) -> Env:
    space = env.observation_space
    if isinstance(space, spaces.Dict):
        if columns is not None or goals is not None:
            raise ValueError("an environment of Dict observations has its own goals: drop goal_columns and goals.")
    else:
        if columns is None or goals is None:
            raise ValueError(f"an observation of {space} has no goals: give goal_columns and goals.")
        env = _ColumnGoals(env, columns, goals)
    return _Endless(_scaled(env), has_fallen)


class _KnownId(str):
    """An id of gymnasium's registry that takes its entry along to processes in which nobody has registered it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        spec = gymnasium.registry.get(self.rpartition(":")[2])
        # those that packages register on being imported need not be taken along
        if spec is None or str(spec.entry_point).startswith(("gymnasium.", "gymnasium_robotics.")):
            return _KnownId, (str(self),)
        return _registered, (str(self), spec)


def _registered(env_id: str, spec: Any) -> _KnownId:
    gymnasium.registry.setdefault(spec.id, spec)
    return _KnownId(env_id)


def _made(env_id: str) -> Env:
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error:
        if importlib.util.find_spec("gymnasium_robotics") is not None:
            # the package prints advice on tasks we do not use to stderr when it is imported
            with contextlib.redirect_stderr(io.StringIO()):
                gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
    try:
        # -1: no time limit of gymnasium's
        return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium cannot make {env_id!r}: {error}") from error


def _scaled(env: Env) -> Env:
    """The environment with actions in ``[-1, 1]``."""
    space = env.action_space
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded()):
        raise ValueError(f"expected an action space of vectors with bounds, got {space}.")
    if (space.low == -1.0).all() and (space.high == 1.0).all():
        return env
    return gymnasium.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))


class _ColumnGoals(Wrapper):
    """Adds the goals to an observation that is a vector."""

    def __init__(self, env: Env, columns: tuple[int, ...], goals: Goals) -> None:
        super().__init__(env)
        space = env.observation_space
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise ValueError(f"expected an observation that is a vector, or a Dict of {GOAL_KEYS}, got {space}.")
        if not columns or min(columns) < 0 or max(columns) >= space.shape[0]:
            raise ValueError(f"goal_columns must lie in [0, {space.shape[0]}), got {list(columns)}.")
        self._columns, self._goals = list(columns), goals
        if not callable(goals):
            if not isinstance(goals, Sequence) or len(goals) != 2:
                raise ValueError(f"goals must be a function, or smallest and largest numbers, got {goals!r}.")
            low, high = (np.asarray(bound, dtype=np.float64) for bound in goals)
            fits = low.shape == high.shape == (len(columns),) and np.isfinite(high - low).all()
            if not (fits and (low <= high).all()):
                raise ValueError(f"goals must be {len(columns)} smallest and as many largest numbers, got {goals}.")
        box = spaces.Box(-np.inf, np.inf, (len(columns),), np.float32)
        self.observation_space = spaces.Dict(list(zip(GOAL_KEYS, (space, box, box))))
        self._goal = np.zeros(len(columns), dtype=np.float32)
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode with a goal of its own."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._generator = np.random.default_rng([_GOAL_STREAM, seed])
        goal = self._goals(self._generator) if callable(self._goals) else self._generator.uniform(*self._goals)
        self._goal = np.asarray(goal, dtype=np.float32)
        if self._goal.shape != (len(self._columns),):
            raise ValueError(f"goals: expected a goal of {len(self._columns)} numbers, got {self._goal.tolist()}.")
        if not np.isfinite(self._goal).all():
            raise ValueError(f"goals: expected a goal of finite numbers, got {self._goal.tolist()}.")
        return self._with_goals(observation), info

    def step(self, action: NDArray[Any]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment."""
        observation, *rest = self.env.step(action)
        return self._with_goals(observation), *rest  # type: ignore[return-value]

    def _with_goals(self, observation: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(GOAL_KEYS, (observation, observation[self._columns], self._goal)))


class _Endless(Wrapper):
    """Clips actions, as the simulators here do, and passes over the environment's own ends; a fall is for ever."""

    def __init__(self, env: Env, has_fallen: Callable[[Any], Any] | None) -> None:
        super().__init__(env)
        self._has_fallen = has_fallen
        self._fallen: tuple[Any, ...] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self._fallen = None
        if seed is not None and seed >= _SMALL_SEEDS:
            # of NumPy's RandomState, which old environments draw from
            with contextlib.suppress(ValueError, OverflowError):
                return self.env.reset(seed=seed, options=options)
            seed %= _SMALL_SEEDS
        return self.env.reset(seed=seed, options=options)

    def step(self, action: NDArray[Any]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment, unless it has fallen."""
        if self._fallen is not None:
            return self._fallen  # type: ignore[return-value]
        observation, reward, _, _, info = self.env.step(np.clip(action, -1.0, 1.0))
        row = np.asarray(observation["observation"], dtype=np.float32)
        fallen = self._has_fallen is not None and bool(self._has_fallen(row))
        result = observation, reward, fallen, False, info
        if fallen:
            self._fallen = result
        return result


def _widths(name: str, env: Env) -> dict[str, int]:
    """Widths of observation, goal and action of an environment that does what a task's must.

    Raises:
        ValueError: if it does not.
    """
    first, second = (env.reset(seed=0)[0] for _ in range(2))
    if not isinstance(first, dict) or set(GOAL_KEYS) - set(first):
        raise ValueError(f"{name}: expected a Dict observation of {', '.join(GOAL_KEYS)}, got {env.observation_space}.")
    episodes = [_begun(env, seed) for seed in (0, 1, 0)]
    for key in GOAL_KEYS:
        steps = [np.asarray(observation[key]) for episode in episodes for observation in episode]
        values = [np.asarray(observation[key]) for observation in (first, second)] + steps
        for value in values:
            if value.ndim != 1 or value.dtype.kind not in "fiu" or not np.isfinite(value.astype(np.float32)).all():
                raise ValueError(f"{name}: {key}: expected a vector of finite numbers, got {value!r}.")
        if len({value.shape for value in values}) > 1:
            raise ValueError(f"{name}: {key}: expected one width, got {[len(value) for value in values]}.")
        if not np.array_equal(values[0], values[1]):
            raise ValueError(
                f"{name}: {key}: two resets with one seed differ, {values[0].tolist()} and {values[1].tolist()}: draw "
                "every random number from the environment's np_random."
            )
        # a simulator may differ by what it rounds, and what is stored is float32
        for step, (one, other) in enumerate(zip(steps[: _LOOKED_AT + 1], steps[-_LOOKED_AT - 1 :])):
            if not np.allclose(one, other, rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"{name}: {key}: two episodes with one seed and the same actions differ after step {step}, "
                    f"{one.tolist()} and {other.tolist()}: draw every random number from the environment's np_random, "
                    "and let reset forget the episode before."
                )
    for episode in episodes:
        for step, observation in enumerate(episode):
            if not np.array_equal(observation["desired_goal"], episode[0]["desired_goal"]):
                told = [np.asarray(each["desired_goal"]).tolist() for each in (episode[0], observation)]
                raise ValueError(
                    f"{name}: the goal changes in step {step} of an episode, from {told[0]} to {told[1]}: it must stay "
                    "for the episode."
                )
    if first["achieved_goal"].shape != first["desired_goal"].shape:
        raise ValueError(f"{name}: achieved_goal and desired_goal differ in width.")
    widths = {key: len(first[key]) for key in ("observation", "desired_goal")}
    return {**widths, "action": env.action_space.shape[0]}  # type: ignore[index]


def _begun(env: Env, seed: int) -> list[dict[str, Any]]:
    """Copies of the first observations of an episode, whose actions the seed decides too."""
    generator = np.random.default_rng(seed)
    observations = [copy.deepcopy(env.reset(seed=seed)[0])]
    for _ in range(_LOOKED_AT):
        action = generator.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)  # type: ignore[arg-type]
        observations.append(copy.deepcopy(env.step(action)[0]))
    return observations


def _columns(given: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(given, Iterable):
        raise ValueError(f"goal_columns must be numbers of columns, got {given!r}.")
    return tuple(check_whole("a goal column", column) for column in given)


def _floats(bound: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, bound))


def _check_rule(name: str, has_fallen: Callable[[Any], Any], env: Env) -> None:
    """Refuses a rule of falls that does not say one thing of each observation, alone or of several.

    Raises:
        ValueError: naming both shapes.
    """
    first = env.reset(seed=0)[0]
    if not isinstance(first, dict) or "observation" not in first:
        return  # no observation of a task, which is refused in its own words
    row = np.asarray(first["observation"], dtype=np.float32)
    for rows in (row, np.stack([row, row]), np.stack([row, row])[None]):
        try:
            found = np.asarray(has_fallen(rows))
        except Exception as error:
            raise ValueError(
                f"{name}: has_fallen: expected booleans for observations {list(rows.shape)}, failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if found.shape != rows.shape[:-1] or found.dtype != np.bool_:
            raise ValueError(
                f"{name}: has_fallen: expected booleans of shape {list(rows.shape[:-1])} for observations "
                f"{list(rows.shape)}, got {found.dtype} {list(found.shape)}."
            )


def _names(key: str, given: Sequence[str] | None, width: int) -> tuple[str, ...]:
    what = key.removeprefix("desired_")
    if given is None:
        return tuple(f"{what} {number}" for number in range(width))
    if len(given) != width or isinstance(given, str):
        raise ValueError(f"{what}_names: expected {width} names, got {given!r}.")
    return tuple(given)
