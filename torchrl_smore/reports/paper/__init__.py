"""The paper's numbers, and ours beside them: tables, claims and aggregates over its tasks."""

from torchrl_smore.reports.paper.claims import (
    Outcome,
    claims_to_markdown,
    evaluate_claim,
    evaluate_claims,
    evaluate_partly,
    grounds,
)
from torchrl_smore.reports.paper.markup import Table, escape_markdown, to_html, to_latex, to_markdown
from torchrl_smore.reports.paper.published import HORIZONS, NUM_TRAJECTORIES, NUM_UPDATES, Paper, PaperCell, max_return
from torchrl_smore.reports.paper.scores import (
    BASE_SETTING,
    IMAGE_SETTING,
    IMAGE_TASKS,
    is_locomotion,
    judged_sample,
    main_setting,
    our_sample,
    over_max,
    task_order,
)
from torchrl_smore.reports.paper.summary import (
    METHOD,
    THRESHOLDS,
    Summary,
    summarize,
    summary_notes,
    summary_rows,
    summary_to_markdown,
)
from torchrl_smore.reports.paper.tables import build_table, render_table, table_tasks, views

__all__ = [
    "BASE_SETTING",
    "HORIZONS",
    "IMAGE_SETTING",
    "IMAGE_TASKS",
    "METHOD",
    "NUM_TRAJECTORIES",
    "NUM_UPDATES",
    "THRESHOLDS",
    "Outcome",
    "Paper",
    "PaperCell",
    "Summary",
    "Table",
    "build_table",
    "claims_to_markdown",
    "escape_markdown",
    "evaluate_claim",
    "evaluate_claims",
    "evaluate_partly",
    "grounds",
    "is_locomotion",
    "judged_sample",
    "main_setting",
    "max_return",
    "our_sample",
    "over_max",
    "render_table",
    "summarize",
    "summary_notes",
    "summary_rows",
    "summary_to_markdown",
    "table_tasks",
    "task_order",
    "to_html",
    "to_latex",
    "to_markdown",
    "views",
]
