"""Relabelling of sampled goal transitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.envs.transforms import Transform

from torchrl_smore.data._relabel import SparseReward, SuccessFn, reached_mask, where_rows
from torchrl_smore.data.samplers import ReachedFn, checked_reached, positive, stored_goal_reached
from torchrl_smore.functional.goals import check_her_ratio, goal_offset


class HindsightGoalTransform(Transform):
    """Turns a batch of :class:`~torchrl_smore.data.GoalTransition`, ``[B, 4]``, into offline and goal transitions.

    Output, batch size ``[B]``: at the root the offline transitions (rho), their goal replaced by
    ``("next", achieved_goal)`` of the goal row with probability ``her_ratio`` and kept otherwise; under ``q_key`` the
    goal transitions, which pursue the goal that they enter, or, with probability ``1 - her_ratio``, transitions that
    reach their stored goal (relabelled ones where the data has none). ``desired_goal`` and ``("next", desired_goal)``
    agree; reward, terminated and done are recomputed for the new goal when ``success`` is given (what the data say is
    terminated, a fall, stays so under any goal), else dropped for being stale. So are the entries named by ``stale``.
    Goals may have any shape ``[B, *G]``.

    Two losses read more, which is written at the root: ``"initial_observation"`` (GoFAR), the observation of the fifth
    row where the unit has ``initial=True``; and with ``step_key`` ``"goal_offset"`` (WGCSL), int64 ``[B, 1]``, steps
    from the transition to the row whose goal it was given, -1 where it kept its stored one. Where the unit has an
    ``actor_strategy``, ``"actor_goal"`` is the goal of the sixth row, or the stored one where the transition keeps its.

    Args:
        her_ratio: probability of relabelling, in ``[0, 1]``; the paper uses 0.8 for every task.
        success: ``success(achieved_goal [*, G], goal [*, G]) -> bool [*]``, the task's success rule.
        reward_values: reward of a step that does not, and that does, reach the goal; float32, whatever the goals are.
        terminate_at_goal: end the trajectory (``terminated``) where the goal is reached.
        reached: what the unit has; not used when ``success`` is given, which says the same.
        generator: random numbers of the relabelling mask; torch's global ones if ``None``.
        achieved_goal_key: key of the achieved goal.
        desired_goal_key: key of the goal pursued.
        q_key: where goal transitions are written.
        stale: entries under ``next`` that depend on the goal and are dropped if they are there.
        step_key: key of the number of a row in its trajectory, integer, ``[N]`` or ``[N, 1]``, such as the
            ``"step_count"`` of TorchRL's ``StepCounter`` and of :meth:`~torchrl_smore.data.TrajectoryStore.to_storage`;
            ``None``: no ``"goal_offset"`` is written. Goals of the strategy ``"random"`` and stitched ones have none.
        observation_key: key of the observation.

    Raises:
        ValueError: if ``her_ratio`` lies outside ``[0, 1]``.
    """

    def __init__(
        self,
        her_ratio: float = 0.8,
        *,
        success: SuccessFn | None = None,
        reward_values: tuple[float, float] = (0.0, 1.0),
        terminate_at_goal: bool = False,
        reached: ReachedFn = stored_goal_reached,
        generator: torch.Generator | None = None,
        achieved_goal_key: NestedKey = "achieved_goal",
        desired_goal_key: NestedKey = "desired_goal",
        q_key: NestedKey = "q",
        stale: Sequence[NestedKey] = ("is_success", "success"),
        step_key: NestedKey | None = None,
        observation_key: NestedKey = "observation",
    ) -> None:
        check_her_ratio(her_ratio)
        super().__init__(in_keys=[achieved_goal_key, desired_goal_key], out_keys=[desired_goal_key, q_key])
        self.her_ratio = her_ratio
        self.success = success
        self._reward = None if success is None else SparseReward(success, reward_values, terminate_at_goal)
        self.reached = reached
        self.generator = generator
        self.achieved_goal_key = achieved_goal_key
        self.desired_goal_key = desired_goal_key
        self.q_key = q_key
        self.stale = tuple(stale)
        self.step_key = step_key
        self.observation_key = observation_key
        ends = () if success is not None else ("done", "terminated", "truncated")
        dependent = [self.desired_goal_key, *(("next", name) for name in (*self.stale, "reward", *ends))]
        self._dependent = [unravel_key(key) for key in (*dependent, ("next", self.desired_goal_key))]
        self._checked = self._counted = False

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """See the class.

        Raises:
            ValueError: if the batch is not ``[B, 4]`` to ``[B, 6]``, stored and achieved goals differ in shape or
                dtype, or the first batch shows that the unit has another ``reached`` rule, or that ``step_key`` counts
                no steps.
            KeyError: if it lacks the goals, or what ``step_key`` or, of five rows and more, ``observation_key`` names.
        """
        if tensordict.ndim != 2 or tensordict.shape[1] not in (4, 5, 6):
            raise ValueError(
                "HindsightGoalTransform expects a [B, 4] batch from GoalTransition, "
                f"got batch size {list(tensordict.shape)}. What is stored is read from the buffer's storage, "
                "buffer.storage[...], and not from buffer[...], which applies its transform."
            )
        # without a stored goal everything is relabelled, and needs none
        needed = [("next", self.achieved_goal_key), *([self.desired_goal_key] if self.her_ratio < 1.0 else [])]
        for key in (*needed, *([self.observation_key] if tensordict.shape[1] > 4 else [])):
            if tensordict.get(key, None) is None:
                raise KeyError(f"HindsightGoalTransform reads {key!r}, which the batch does not have; name it by key.")
        stored, entered = tensordict.get(self.desired_goal_key, None), self._entered(tensordict)
        if self.her_ratio < 1.0 and stored.shape != entered.shape:
            name, other = self.desired_goal_key, ("next", self.achieved_goal_key)
            raise ValueError(
                f"expected {name!r} and {unravel_key(other)!r} of one shape, got {list(stored.shape[2:])} and "
                f"{list(entered.shape[2:])} in each row."
            )
        if self.her_ratio < 1.0 and stored.dtype != entered.dtype:
            # one goal is chosen from both: torch would promote it, and name neither in a network's error
            name, other = self.desired_goal_key, ("next", self.achieved_goal_key)
            raise ValueError(
                f"expected {name!r} and {unravel_key(other)!r} of one dtype, got {stored.dtype} and {entered.dtype}."
            )
        goal, q_goal = entered[:, 1], entered[:, 2]
        actor_goal = entered[:, 5] if tensordict.shape[1] == 6 else None
        # what follows from the goal is made anew, so none of it need be carried along
        kept = tensordict.exclude(*self._dependent)
        offline = kept[:, 0]
        keep = None
        if self.her_ratio < 1.0:
            keep, q_keep = self._stored_masks(tensordict)
            if actor_goal is not None:
                actor_goal = where_rows(keep, stored[:, 0], actor_goal)
            goal, q_goal = where_rows(keep, stored[:, 0], goal), where_rows(q_keep, stored[:, 3], q_goal)
            q = _chosen(kept, q_keep.long() + 2)
        else:
            q = kept[:, 2]
        self._pursue(offline, goal)
        self._pursue(q, q_goal)
        if self.step_key is not None:
            offline.set("goal_offset", self._goal_offset(tensordict, self.step_key, keep))
        if actor_goal is not None:
            offline.set("actor_goal", actor_goal)
        if tensordict.shape[1] > 4:
            offline.set("initial_observation", tensordict.get(self.observation_key)[:, 4])
        return offline.set(self.q_key, q)

    def _entered(self, rows: TensorDictBase) -> Tensor:
        return rows.get(("next", self.achieved_goal_key))

    def _stored_masks(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Rows that keep their stored goal, in rho and in q; bool ``[B]`` each."""
        stored = tensordict.get(self.desired_goal_key)
        uniform = torch.rand(2, stored.shape[0], device=stored.device, generator=self.generator)
        keep, q_keep = uniform >= self.her_ratio
        # without a row that reaches its stored goal the unit repeats the entering row, which must be relabelled
        if self.success is not None:
            reaches = reached_mask(self.success, self._entered(tensordict)[:, 3], stored[:, 3])
        else:
            reaches = self._stored_reached(tensordict[:, 3])
        if not self._checked:
            if bool(reaches.any()) and not bool(reaches.all()):
                raise ValueError(
                    f"only {int(reaches.sum())} of {reaches.numel()} rows that the unit says reach their stored goal "
                    "do so by the transform's rule: give GoalTransition the rule of the transform as reached=."
                )
            self._checked = True
        return keep, q_keep & reaches

    def _goal_offset(self, tensordict: TensorDictBase, key: NestedKey, keep: Tensor | None) -> Tensor:
        """Steps to the goals that rho was given, int64 ``[B, 1]``."""
        steps = tensordict.get(key, None)
        if steps is None:
            raise KeyError(
                f"HindsightGoalTransform reads {key!r} (step_key=), the number of a row in its trajectory, which the "
                "batch does not have: StepCounter of TorchRL and to_storage(step_count=True) of TrajectoryStore write "
                "'step_count'."
            )
        if steps.numel() != tensordict.numel():
            raise ValueError(f"expected one number for each row in {key!r} (step_key=), got {list(steps.shape[2:])}.")
        row, goal_row = steps.reshape(tensordict.shape).long()[:, :2].unbind(-1)
        if not self._counted:
            earlier = int((goal_row < row).sum())
            if earlier:
                raise ValueError(
                    f"{key!r} (step_key=) is smaller in the row of the goal than in that of the transition in "
                    f"{earlier} of {len(row)} samples: it must count the steps of a trajectory, and goals of the "
                    "strategy 'random' and stitched ones are no steps away."
                )
            self._counted = True
        return goal_offset(row, goal_row, torch.ones_like(row, dtype=torch.bool) if keep is None else ~keep)

    def _stored_reached(self, rows: TensorDictBase) -> Tensor:
        if self.reached is stored_goal_reached:
            # of a batch that has none nothing follows: the unit, which sees all rows, says what is wrong
            reward = rows.get(("next", "reward"), None)
            return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device) if reward is None else positive(reward)
        return checked_reached(self.reached, rows)

    def _pursue(self, rows: TensorDictBase, goal: Tensor) -> None:
        """Writes the goal and everything that depends on it."""
        rows.set(self.desired_goal_key, goal)
        rows.set(("next", self.desired_goal_key), goal)
        if self._reward is None:
            return
        terminated, truncated = (rows.get(("next", name), None) for name in ("terminated", "truncated"))
        if truncated is None:
            truncated = rows.get(("next", "done"), None)
        for name, value in self._reward(self._entered(rows), goal, terminated, truncated).items():
            rows.set(("next", name), value)

    def set_extra_state(self, state: Any) -> None:
        """Restores the generator."""
        if self.generator is not None and state is not None:
            self.generator.set_state(state.cpu())

    def get_extra_state(self) -> Any:
        """State of the generator."""
        return None if self.generator is None else self.generator.get_state()


def _chosen(rows: TensorDictBase, column: Tensor) -> TensorDictBase:
    """Of each sample the row in a column of its own: rows ``[B, C]`` and columns, int64 ``[B]``, to ``[B]``."""
    size = rows.shape[:1]
    number = torch.arange(0, rows.numel(), rows.shape[1], device=column.device) + column

    def chosen(held: TensorDictBase) -> TensorDictBase:
        if type(held) is not TensorDict:
            return held.flatten(0, 1)[number]
        found = {
            key: value.flatten(0, 1).index_select(0, number) if type(value) is Tensor else chosen(value)
            for key, value in held.items()
        }
        return TensorDict(found, size, device=held.device)

    return chosen(rows)
