"""Figure 3: success where observations and goals are pictures, as bars like the paper's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from torchrl_smore.reports.figures.style import method_styles, panels, say_empty
from torchrl_smore.reports.numbers import Cell, Result, RunSet, method_order
from torchrl_smore.reports.paper import IMAGE_SETTING, IMAGE_TASKS, task_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_figure(results: Iterable[Result]) -> Figure:
    """A panel for each task: a bar for each method, its success after the last step, of runs from pictures.

    The tasks are those of the figure, and after them others that have such runs.
    """
    runs = RunSet(results)
    seen = [result for result in runs.results if result.key[2] == IMAGE_SETTING]
    others = task_order({result.task for result in seen} - set(IMAGE_TASKS))
    tasks = [*IMAGE_TASKS, *others]
    styles = method_styles(method_order(result.method for result in seen))
    figure, axes = panels(len(tasks), 4, width=2.7, height=2.7, legend=False)
    for axis, task in zip(axes, tasks):
        axis.set_title(task, fontsize=10)
        samples = {
            method: sample
            for method in styles
            if (sample := runs.sample(Cell("", task, method, IMAGE_SETTING, "success_rate"))) is not None
        }
        for place, (method, sample) in enumerate(samples.items()):
            # of one seed there is no deviation: a bar of length 0 is not drawn
            spread = float(np.nan_to_num(sample.std))
            axis.bar(place, sample.mean, 0.75, yerr=spread or None, color=styles[method].color, capsize=3)
            if sample.values is not None:
                axis.plot(np.full(sample.num_seeds, place), sample.values, "o", color="0.15", markersize=2.5)
        if not samples:
            say_empty(axis)
        # slanted names of more than some six bars would lie on each other
        slant = {"rotation": 30, "ha": "right"} if len(samples) <= 6 else {"rotation": 90}
        axis.set_xticks(range(len(samples)), list(samples), fontsize=8, **slant)
        axis.set_xlim(-0.6, max(len(samples), 1) - 0.4)
        axis.set_ylim(0.0, 1.02)
        axis.set_ylabel("success after the last step", fontsize=9)
    return figure
