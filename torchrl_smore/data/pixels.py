"""Goal-transition batches of pictures, gathered from frames that are stored once for each state."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_smore.data._relabel import SparseReward, SuccessFn, reached_mask
from torchrl_smore.data._seeded import SeededBatches
from torchrl_smore.data.samplers import anchor_distribution, check_away, rows_away, stored_stop
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.functional.goals import (
    NUM_UNIFORMS,
    GoalTransitionRows,
    Strategy,
    check_goal_gamma,
    check_strategy,
    goal_transition_rows,
    uniform_index,
)

_CROP_UNIFORMS = 3  # whether, and by how much down and across


class PixelBatchSampler(SeededBatches):
    """Samples offline and goal transitions whose observations and goals are pictures.

    Does what :class:`~torchrl_smore.data.GoalBatchSampler` does, on the same functional core, with uint8 frames in the
    place of vectors; they become floating point in the networks, on their device. A goal is the frame that the step of
    its row led to, so there are hindsight goals only. Frames may be memory-mapped: what a batch needs is read.

    A random crop shifts the pictures of a row, all by the same offset, by up to ``pad`` pixels in each direction, and
    repeats the edge; score, value and actor see the same.

    Args:
        store: with frames.
        batch_size: offline rows, and goal-transition rows, of a batch.
        strategy: see :class:`~torchrl_smore.data.GoalBatchSampler`.
        actor_strategy: likewise.
        gamma: likewise.
        anchors: likewise.
        threshold: likewise; distances are those of the stored achieved goals.
        success: when given, 0/1 rewards and ``terminated`` are added, for losses that read them: ``"identity"``, where
            the next state is the goal's own, or ``success(achieved_goal, goal) -> bool`` of the stored achieved goals.
        reward_values: see :class:`~torchrl_smore.data.HindsightGoalTransform`.
        terminate_at_goal: likewise.
        q: whether to sample goal transitions at all.
        following: whether offline transitions have pictures of what follows, under ``next``; cloning reads none.
        crop_prob: probability that a row is shifted, in ``[0, 1]``.
        pad: largest shift in pixels, at least 0.
        seed: seed of the generator.
        device: where frames and columns lie; ``None``: where those of the store are.

    Raises:
        ValueError: if the store has no frames, or an argument lies outside its range.
    """

    num_uniforms = NUM_UNIFORMS + _CROP_UNIFORMS

    def __init__(
        self,
        store: TrajectoryStore,
        batch_size: int,
        *,
        strategy: Strategy = "future",
        actor_strategy: Strategy | None = None,
        gamma: float = 0.99,
        anchors: Tensor | None = None,
        threshold: float | None = None,
        success: SuccessFn | Literal["identity"] | None = None,
        reward_values: tuple[float, float] = (0.0, 1.0),
        terminate_at_goal: bool = False,
        q: bool = True,
        following: bool = True,
        crop_prob: float = 0.0,
        pad: int = 4,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if store.frames is None:
            raise ValueError("expected a store with frames, found one without: see TrajectoryStore.with_frames.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        if not 0.0 <= crop_prob <= 1.0:
            raise ValueError(f"crop_prob must lie in [0, 1], got {crop_prob}.")
        if pad < 0:
            raise ValueError(f"pad must not be negative, got {pad}.")
        used = {*check_strategy(strategy), *check_strategy(actor_strategy or strategy)}
        check_away(used, threshold)
        check_goal_gamma(used, gamma)
        data = store.data
        device = torch.device(device or store.frames.device)
        self.batch_size = batch_size
        self.strategy, self.actor_strategy = strategy, actor_strategy
        self.gamma, self.q, self.following = gamma, q, following
        self.crop_prob, self.pad = crop_prob, pad
        self.generator = torch.Generator(device).manual_seed(seed)
        # cropping gathers whole lines; what is mapped into memory is contiguous, and not copied
        self._frames = store.frames.to(device).contiguous()
        self._frame = store.frame_index.to(device)
        self._action = data.get("action").to(device)
        self._achieved = data.get(("next", "achieved_goal")).to(device)
        stop = stored_stop(data)
        self._stop = stop.to(device)
        self._none = torch.empty(0, dtype=torch.int64, device=device)
        self._anchors = None if anchors is None else anchor_distribution(anchors, stop.shape[0], device)
        away = rows_away(used, data, stop, threshold)
        self._away = None if away is None else away.to(device)
        self._by_row = success == "identity"
        self._reward = None
        if success is not None:
            rule = _same if success == "identity" else success
            assert not isinstance(rule, str)
            self._reward = SparseReward(rule, reward_values, terminate_at_goal)
            if not self._by_row:
                # a user's rule is checked on two rows, before anything is trained
                reached_mask(rule, self._achieved[:2], self._achieved[:2])
        self._ends = [data.get(("next", name)).to(device) for name in ("terminated", "truncated")]

    def __len__(self) -> int:
        return self._action.shape[0]

    def gather(self, uniform: Tensor) -> TensorDict:
        """The batch that belongs to ``uniform``; deterministic.

        Returns:
            With batch size ``[B]``, ``observation`` and ``desired_goal``, uint8 ``[B, H, W, 3]``, ``action``,
            ``actor_goal`` if it is of its own, ``("next", "observation" | "achieved_goal" | "desired_goal")``, also
            pictures, with ``success`` ``("next", "reward" | "terminated" | "done")``, and the same under ``"q"``. What
            is one picture is one tensor: that of ``achieved_goal`` is that of the next observation.
        """
        rows = goal_transition_rows(
            uniform[:, :NUM_UNIFORMS],
            self._stop,
            self._none,
            her_ratio=1.0,
            strategy=self.strategy,
            actor_strategy=self.actor_strategy,
            gamma=self.gamma,
            anchors=self._anchors,
            away=self._away,
        )
        shift = self._shift(uniform[:, NUM_UNIFORMS:])
        batch = self._rows(rows.index, rows.goal_index, shift, self.following)
        self._add_actor_goal(batch, rows, shift)
        if self.q:
            batch.set("q", self._rows(rows.q_index, None, shift, following=True))
        return batch

    def _shift(self, uniform: Tensor) -> Tensor | None:
        """Offset of each row down and across, int64 ``[B, 2]``, in ``[-pad, pad]``; ``None``: there is never one."""
        if self.crop_prob == 0.0 or self.pad == 0:
            return None
        offset = uniform_index(uniform[:, 1:], -self.pad, self.pad + 1)
        return torch.where((uniform[:, 0] < self.crop_prob).unsqueeze(-1), offset, 0)

    def _add_actor_goal(self, batch: TensorDict, rows: GoalTransitionRows, shift: Tensor | None) -> None:
        if self.actor_strategy is not None:
            batch.set("actor_goal", self._pictures(self._frame[rows.actor_goal_index] + 1, shift))

    def _rows(self, index: Tensor, goal_index: Tensor | None, shift: Tensor | None, following: bool) -> TensorDict:
        frame, aim = self._frame[index], index if goal_index is None else goal_index
        goal = self._pictures(self._frame[aim] + 1, shift)
        after: dict[str, Any] = {}
        if following:
            entered = goal if goal_index is None else self._pictures(frame + 1, shift)
            after |= {"observation": entered, "achieved_goal": entered, "desired_goal": goal}
        if self._reward is not None:
            pair = (index, aim) if self._by_row else (self._achieved[index], self._achieved[aim])
            after |= self._reward(*pair, *(flag[index] for flag in self._ends))
        size = index.shape
        return TensorDict(
            {
                "observation": self._pictures(frame, shift),
                "action": self._action[index],
                "desired_goal": goal,
                "next": TensorDict(after, batch_size=size),
            },
            batch_size=size,
        )

    def _pictures(self, frame: Tensor, shift: Tensor | None) -> Tensor:
        if shift is None:
            # copies whole frames, where indexing copies byte by byte
            return self._frames.index_select(0, frame)
        return shifted_frames(self._frames, frame, shift, self.pad)


def _same(achieved: Tensor, goal: Tensor) -> Tensor:
    return achieved == goal


def shifted_frames(frames: Tensor, index: Tensor, shift: Tensor, pad: int) -> Tensor:
    """Frames moved by a few pixels, with the edge repeated where nothing is left: a crop of the padded picture.

    Args:
        frames: shape ``[F, H, W, C]``, contiguous.
        index: which of them, int64, shape ``[B]``.
        shift: pixels that the window moves down and across, int64 in ``[-pad, pad]``, shape ``[B, 2]``; the pixel at
            ``(y, x)`` of the result is that at ``(y + down, x + across)`` of the frame, or the nearest there is.
        pad: largest shift.

    Returns:
        Shape ``[B, H, W, C]``, of the same dtype.
    """
    _, height, width, channels = frames.shape
    rows = torch.arange(height, device=index.device)
    # whole lines are gathered first, already shifted down, and then windows of whole padded lines
    line = index[:, None] * height + (rows + shift[:, :1]).clamp(0, height - 1)
    lines = frames.view(-1, width * channels).index_select(0, line.flatten()).view(-1, width, channels)
    padded = torch.cat([lines[:, :1].expand(-1, pad, -1), lines, lines[:, -1:].expand(-1, pad, -1)], 1)
    windows = padded.flatten().unfold(0, width * channels, channels)
    first = torch.arange(len(lines), device=index.device) * (width + 2 * pad)
    # index_select copies windows, where indexing copies byte by byte
    chosen = windows.index_select(0, first + (shift[:, 1] + pad).repeat_interleave(height))
    return chosen.view(-1, height, width, channels)
