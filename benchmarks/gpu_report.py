"""What ``make gpu`` found, as CSV files, figures and one page.

python benchmarks/gpu_report.py runs/gpu                  writes docs/results/gpu.md, naming the card
python benchmarks/gpu_report.py runs/gpu --files-only     CSV and PNG beside results.jsonl, no page
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu import ROOT, read_rows

#: The numbers that the design asks of one H100 or H200.
BARS = {
    "updates/s, batch 512, one seed, captured": 10_000.0,
    "seed-updates/s at 16 or more seeds": 60_000.0,
    "bellman_residual over torch.compile, from 65,536 rows on": 1.2,
    "bellman_residual, share of copy bandwidth, from 65,536 rows on": 0.7,
}


def table(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the named columns."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(_cell(row.get(key)) for key in header) + " |" for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "/")


class Found:
    """The rows of a folder, by what they are."""

    def __init__(self, folder: Path) -> None:
        self.rows = list(read_rows(folder / "results.jsonl"))
        if not self.rows:
            raise ValueError(f"{folder / 'results.jsonl'} holds no results: make gpu writes it.")

    def of(self, *keys: str) -> list[dict[str, Any]]:
        """Rows that have all these entries."""
        return [row for row in self.rows if all(key in row for key in keys)]

    @property
    def dry_run(self) -> bool:
        """Whether nothing of it ran on a GPU."""
        return bool(self.of("dry_run"))

    @property
    def card(self) -> str:
        """The name of the card."""
        found = self.of("device")
        return str(found[-1]["device"]) if found else "an unknown device"

    def statuses(self) -> list[dict[str, Any]]:
        """How each task ended at last."""
        last = {row["task"]: row for row in self.of("status")}
        return list(last.values())

    def bars(self) -> list[dict[str, Any]]:
        """The design's numbers beside what was reached."""
        names = list(BARS)
        one = [
            row["updates_per_second"]
            for row in self.of("updates_per_second", "mode")
            if row["seeds"] == 1 and row["batch_size"] == 512 and "captured" in row["mode"]
        ]
        many = [row["seed_updates_per_second"] for row in self.of("seed_updates_per_second") if row["seeds"] >= 16]
        large = [
            row
            for row in self.of("kernel", "over_compile")
            if row["kernel"] == "bellman_residual"
            and row["implementation"] == "triton"
            and _rows(row["size"]) >= 65_536
        ]
        reached = [
            max(one, default=None),
            max(many, default=None),
            min((row["over_compile"] for row in large), default=None),
            min((row["fraction_of_copy_bandwidth"] for row in large), default=None),
        ]
        return [
            {
                "bar": name,
                "asked": BARS[name],
                "found": found,
                "reached": "not measured" if found is None else "yes" if found >= BARS[name] else "no",
            }
            for name, found in zip(names, reached)
        ]


def _rows(size: str) -> int:
    """Rows of rho in a size such as ``1 x 2 x (512 + 512)``."""
    return int(size.split("(")[1].split("+")[0])


def write_files(found: Found, folder: Path) -> list[Path]:
    """One CSV a kind of row, and figures; each whole or absent."""
    kinds = {
        "tasks": found.statuses(),
        "check": [*found.of("error", "bound"), *found.of("error_over_distance_moved")],
        "updates": found.of("updates_per_second", "mode"),
        "kernels": found.of("kernel", "over_compile"),
        "profile": found.of("operation"),
    }
    written = []
    for name, rows in kinds.items():
        if rows:
            written.append(_write_csv(folder / f"{name}.csv", rows))
    for name in ("results", "curves"):
        rows = [
            {key: value for key, value in row.items() if key not in ("stage", "task_key", "table")}
            for row in found.rows
            if row.get("table") == name
        ]
        if rows:
            written.append(_write_csv(folder / f"learn_{name}.csv", rows))
    written += _figures(found, folder)
    return written


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    beside = path.with_suffix(".csv.partial")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)
    return path


def _figures(found: Found, folder: Path) -> list[Path]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no figures", file=sys.stderr)
        return []
    written = []
    updates = found.of("updates_per_second", "mode")
    if updates:
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for precision in dict.fromkeys(row["precision"] for row in updates):
            one = [row for row in updates if row["precision"] == precision and row["mode"] != "together"]
            modes = list(dict.fromkeys(row["mode"] for row in one))
            for mode in modes:
                rows = sorted((row for row in one if row["mode"] == mode), key=lambda row: row["batch_size"])
                left.plot(
                    [row["batch_size"] for row in rows],
                    [row["updates_per_second"] for row in rows],
                    marker="o",
                    label=f"{precision}, {mode}",
                )
            rows = [row for row in updates if row["precision"] == precision and row["mode"] == "together"]
            if rows:
                right.plot(
                    [row["seeds"] for row in rows],
                    [row["seed_updates_per_second"] for row in rows],
                    marker="o",
                    label=precision,
                )
        for axis, label, title in ((left, "batch size", "updates/s, one seed"), (right, "seeds", "seed-updates/s")):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(label)
            axis.set_title(title)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize=7)
        figure.suptitle(_title(found), fontsize=9)
        written.append(_save(figure, folder / "updates.png"))
    kernels = [row for row in found.of("kernel", "over_compile") if row["implementation"] == "triton"]
    if kernels:
        figure = Figure(figsize=(8, 1.2 + 0.3 * len(kernels)), layout="constrained")
        axis = figure.subplots()
        axis.barh([f"{row['kernel']}, {row['size']}" for row in kernels], [row["over_compile"] for row in kernels])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xlabel("time of torch.compile over time of the kernel")
        axis.set_title(_title(found), fontsize=9)
        axis.invert_yaxis()
        written.append(_save(figure, folder / "kernels.png"))
    return written


def _title(found: Found) -> str:
    return f"{found.card}{' (dry run: numbers mean nothing)' if found.dry_run else ''}"


def _save(figure: Any, path: Path) -> Path:
    beside = path.with_name(f".{path.name}.partial.png")
    figure.savefig(beside, dpi=120)
    beside.replace(path)
    return path


def page(found: Found, folder: str, figures: Sequence[str]) -> str:
    """The page."""
    versions = found.of("versions")
    said = (
        ", ".join(f"{name} {number}" for name, number in versions[-1]["versions"].items() if number) if versions else ""
    )
    commit = versions[-1].get("commit") if versions else None
    parts = [f"# On a GPU: {found.card}"]
    if found.dry_run:
        parts.append(
            "**This is a dry run on a CPU, with tiny sizes and interpreted kernels: its numbers mean nothing.**"
        )
    parts += [
        f"    make gpu\n    python benchmarks/gpu_report.py {folder}",
        f"{said}; commit {commit}. What the stages do: [../gpu.md](../gpu.md).",
        "## The design's numbers",
        table(("bar", "asked", "found", "reached"), found.bars()),
        "## Checks",
        table(("stage", "task", "status", "seconds", "message"), found.statuses()),
    ]
    if found.of("updates_per_second", "mode"):
        header = ("mode", "precision", "batch_size", "seeds", "updates_per_second", "lowest", "highest")
        header += ("seed_updates_per_second", "time_over_gemm_floor", "memory_gib", "warm_up_seconds")
        parts += ["## Updates", *(f"![Updates per second]({figure})" for figure in figures if "updates" in figure)]
        parts.append(table(header, found.of("updates_per_second", "mode")))
        floors = found.of("tflops", "floor")
        parts.append(
            "The floor counts an update's matrix products at the card's measured peak: "
            + ", ".join(f"{row['precision']} {row['tflops']} TFLOP/s" for row in floors)
            + ". Sampling, optimiser and target update are in the times, not in the floor."
        )
    if found.of("peer"):
        parts += ["## Peers", table(("peer", "said", "updates_per_second", "batch_size"), found.of("peer"))]
    if found.of("kernel", "over_compile"):
        header = ("kernel", "size", "implementation", "median_us", "min_us", "max_us", "over_compile", "over_eager")
        parts += ["## Kernels", *(f"![Kernels]({figure})" for figure in figures if "kernels" in figure)]
        parts.append(table((*header, "fraction_of_copy_bandwidth", "tflops"), found.of("kernel", "over_compile")))
    if found.of("operation"):
        parts += ["## Where the time of an update goes"]
        launches = found.of("launches_per_update")[-1]
        parts.append(
            f"{launches['launches_per_update']:g} operations and {launches['device_us_per_update']:g} us an update, "
            "compiled, not captured, bf16, batch 512."
        )
        parts.append(table(("operation", "us_per_update", "calls_per_update", "share"), found.of("operation")))
    learnt = [row for row in found.rows if row.get("table") == "results" and row.get("metric") == "return_over_max"]
    if learnt:
        parts += ["## Learning", table(("task", "method", "seed", "steps", "metric", "value"), learnt)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Writes files, and the page unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of make gpu")
    parser.add_argument(
        "--page", type=Path, help="where the page goes; none: docs/results/gpu.md, or of a dry run FOLDER"
    )
    parser.add_argument("--files-only", action="store_true", help="no page")
    args = parser.parse_args()
    found = Found(args.folder)
    written = write_files(found, args.folder)
    if not args.files_only:
        target = args.page or (args.folder / "gpu.md" if found.dry_run else ROOT / "docs" / "results" / "gpu.md")
        target.parent.mkdir(parents=True, exist_ok=True)
        figures = []
        for path in written:
            if path.suffix == ".png":
                beside = target.parent / (path.name if target.parent == args.folder else f"gpu/{path.name}")
                if beside.resolve() != path.resolve():
                    beside.parent.mkdir(parents=True, exist_ok=True)
                    beside.write_bytes(path.read_bytes())
                figures.append(str(beside.relative_to(target.parent)))
        text = page(found, str(args.folder), figures)
        partial = target.with_suffix(".md.partial")
        partial.write_text(text)
        partial.replace(target)
        written.append(target)
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
