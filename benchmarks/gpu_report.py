"""Turns what ``gpu.py`` left into a page with figures that name the card.

python benchmarks/gpu_report.py FOLDER                        docs/results/gpu.md and figures beside it
python benchmarks/gpu_report.py FOLDER --out FOLDER/report.md  somewhere else; a dry run goes there by itself
"""

from __future__ import annotations

import argparse
import csv
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_rows
import pages
from gpu_plan import MODES, PRECISIONS, STAGES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "gpu.md"
COLOURS = {"ok": "tab:green", "skipped": "lightgrey", **dict.fromkeys(gpu_rows.FAILED, "tab:red")}
Rows = list[gpu_rows.Row]


class Results:
    """The rows of a folder, of one card or of one dry run.

    Raises:
        ValueError: if there are none, or they come from several machines.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: Rows = list(gpu_rows.read(folder).values())
        devices = {row["device"] for row in self.rows}
        if len(devices) != 1:
            raise ValueError(f"{folder}: expected rows of one card, found {', '.join(sorted(devices)) or 'none'}.")
        (self.device,) = devices
        self.dry_run = any(row["dry_run"] for row in self.rows)
        self.machine = next((row["values"] for row in self.rows if row["key"] == "check/machine"), {})

    def of(self, *prefix: str) -> Rows:
        """Rows whose keys begin so."""
        return [row for row in self.rows if row["key"].split("/")[: len(prefix)] == list(prefix)]

    @property
    def title(self) -> str:
        """The card, or that there was none; versions."""
        names = ("driver", "cuda", "torch", "triton", "torchrl", "tensordict")
        versions = ", ".join(f"{name} {self.machine[name]}" for name in names if self.machine.get(name))
        card = "DRY RUN on a CPU: tiny sizes, numbers without meaning" if self.dry_run else self.device
        return f"{card}; {versions}" if versions else card


def page(results: Results) -> str:
    """The page, in Markdown."""
    warning = "> **This is a dry run.** Nothing here ran on a GPU; the numbers only show that the code works.\n"
    parts = ["# GPU", *([warning] if results.dry_run else []), results.title + ".", _machine(results)]
    for stage, section in (("check", check_section), ("bench", bench_section), ("learn", learn_section)):
        if results.of(stage):
            parts += [section(results), f"![{stage}]({figure_name(stage)})"]
        else:
            parts.append(f"Stage `{stage}` has not been run.")
    return "\n\n".join(parts) + "\n"


def _machine(results: Results) -> str:
    if not results.machine:
        return "The machine was not recorded: `check/machine` has not been run."
    return pages.markdown(["machine", ""], results.machine.items())


def check_section(results: Results) -> str:
    """What was checked, by group, and every failure in full."""
    groups: dict[str, Rows] = {}
    for row in results.of("check"):
        if row["key"] != "check/machine":
            groups.setdefault("/".join(row["key"].split("/")[1:3]), []).append(row)
    cells = []
    for name, rows in groups.items():
        errors = [row["values"]["error"] for row in rows if isinstance(row["values"].get("error"), float)]
        worst = f"{max(errors):.2g}" if errors else ""
        cells.append([name, len(rows), sum(row["status"] == "ok" for row in rows), worst, _others(rows)])
    table = pages.markdown(["check", "items", "right", "largest error over tolerance", "otherwise"], cells)
    return "\n\n".join(["## Right?", table, *_failures(results, "check")])


def _others(rows: Rows) -> str:
    counts = {status: sum(row["status"] == status for row in rows) for status in gpu_rows.STATUSES[1:]}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _failures(results: Results, stage: str) -> list[str]:
    bad = [row for row in results.of(stage) if row["status"] in gpu_rows.FAILED]
    skipped = [row for row in results.of(stage) if row["status"] == "skipped"]
    lines = [f"- `{row['key']}`: {row['status']}, {row['detail']}" for row in [*bad, *skipped]]
    return ["Failed or skipped:\n\n" + "\n".join(lines)] if lines else []


def _spread(values: dict[str, Any], name: str) -> str:
    return f"{values[f'{name}_median']:.4g} [{values[f'{name}_min']:.4g}, {values[f'{name}_max']:.4g}]"


def bench_section(results: Results) -> str:
    """Tables of yardsticks, updates, kernels, peers and the profile."""
    parts = ["## Fast?"]
    for row in results.of("bench", "peak"):
        cells = [[name, f"{value:.4g}"] for name, value in row["values"].items()]
        parts.append(pages.markdown(["yardstick", "measured"], cells))
    updates = [row for row in results.of("bench", "update") if row["status"] == "ok"]
    if updates:
        header = ["update", "updates/s median [min, max]", "seed-updates/s", "over floor", "floor", "launches", "MiB"]
        parts.append(pages.markdown(header, map(_update_cells, updates)))
    kernels = [row for row in results.of("bench", "kernel") if row["status"] == "ok"]
    if kernels:
        header = ["kernel", "us median [min, max]", "over compile", "over eager", "of copy bandwidth", "TFLOP/s"]
        parts.append(pages.markdown(header, map(_kernel_cells, kernels)))
    peers = [row for row in results.of("bench", "peer") if row["status"] == "ok"]
    if peers:
        cells = [[_name(row), _spread(row["values"], "updates_per_s"), row["values"]["hello"]] for row in peers]
        parts.append(pages.markdown(["peer", "updates/s median [min, max]", "says"], cells))
    for row in results.of("bench", "profile"):
        for mode in ("eager", "graph"):
            events = row["values"].get(f"{mode}_kernels", ())
            cells = [[f"`{event['name']}`", f"{event['share']:.1%}", f"{event['calls']:g}"] for event in events]
            parts.append(pages.markdown([f"one update, {mode}", "share of the time", "calls"], cells))
    return "\n\n".join([*parts, *_failures(results, "bench")])


def _name(row: gpu_rows.Row) -> str:
    return row["key"].partition("/")[2].partition("/")[2]


def _update_cells(row: gpu_rows.Row) -> list[str]:
    values = row["values"]
    memory = f"{values['memory_mib']:.0f}" if "memory_mib" in values else ""
    launches = "" if values["launches"] is None else str(values["launches"])
    numbers = [f"{values['seed_updates_per_s']:.4g}", f"{values['over_floor']:.3g}", values["floor"], launches, memory]
    return [_name(row), _spread(values, "updates_per_s"), *numbers]


def _kernel_cells(row: gpu_rows.Row) -> list[str]:
    values = row["values"]
    if "triton_median_us" not in values:
        return [_name(row), "not timed", "", "", "", ""]
    time = f"{values['triton_median_us']:.4g} [{values['triton_min_us']:.4g}, {values['triton_max_us']:.4g}]"
    ratios = [f"{values[name]:.2f}" for name in ("over_compile", "over_eager")]
    share = f"{values['triton_fraction_of_copy_bandwidth']:.0%}"
    return [_name(row), time, *ratios, share, f"{values['triton_tflops']:.3g}"]


def learn_section(results: Results) -> str:
    """What was learnt, and how fast."""
    cells = []
    for row in results.of("learn"):
        values = row["values"]
        if row["kind"].startswith("gpu_learn.learn") and row["status"] == "ok":
            found = [values[name] for name in ("success_last", "discounted_return_0.98", "final_distance")]
            numbers = ["" if number is None else f"{number:.3f}" for number in found]
            seeds = values["seeds"] if "seed" not in row["params"] else f"seed {row['params']['seed']}"
            what = [values["task"], values["method"], f"{values['steps']:,} of {values['batch_size']}", seeds]
            # a row's own seconds are those of the last call, which may have found the run finished; rows had no others
            seconds = values.get("training_seconds", row["seconds"])
            cells.append([*what, *numbers, f"{seconds / 60:.1f}"])
    header = ["task", "method", "updates", "seeds", "success", "discounted return 0.98", "final distance", "minutes"]
    command = "python recipes/report.py results=FOLDER/learn/results.csv curves=FOLDER/learn/curves.csv"
    told = f"Means over seeds; tables and tests of these results: `{command}`."
    return "\n\n".join(["## Does it learn?", pages.markdown(header, cells), told, *_failures(results, "learn")])


def figure_name(stage: str) -> str:
    """File name of a stage's figure beside the page."""
    return f"gpu_{stage}.png"


def draw(results: Results, stage: str, path: Path) -> None:
    """The figure of a stage."""
    drawn = {"check": _draw_check, "bench": _draw_bench, "learn": _draw_learn}[stage](results)
    drawn.suptitle(results.title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pages.replacing(path) as beside:
        drawn.savefig(beside, dpi=110, format="png")


def _draw_check(results: Results) -> Any:
    rows = [row for row in results.of("check") if row["key"] != "check/machine"]
    groups = list(dict.fromkeys("/".join(row["key"].split("/")[1:3]) for row in rows))
    figure, axis = pages.subplots(figsize=(9, 0.4 * len(groups) + 1.6))
    for at, group in enumerate(groups):
        for row in [row for row in rows if "/".join(row["key"].split("/")[1:3]) == group]:
            error = row["values"].get("error")
            # what has no number is drawn at an edge: right far to the left, wrong to the right
            place = error if isinstance(error, float) else 1e-6 if row["status"] in ("ok", "skipped") else 1e3
            axis.plot(max(place, 1e-6), at, marker="|", color=COLOURS[row["status"]], markersize=12)
    axis.set_yticks(range(len(groups)), groups, fontsize=8)
    axis.set_xscale("log")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_xlabel("error over tolerance; red: failed, grey: skipped")
    return figure


def _draw_bench(results: Results) -> Any:
    figure, axes = pages.subplots(1, 3, figsize=(15, 4))
    updates = [row for row in results.of("bench", "update") if row["status"] == "ok"]
    plain = [row for row in updates if not {"kernels", "formulation"} & set(row["params"])]
    sizes = [row["params"]["batch_size"] for row in plain]
    usual = max(set(sizes), key=sizes.count) if sizes else 0
    panels: list[tuple[str, str, Callable[[gpu_rows.Row], bool]]] = [
        ("batch_size", "updates_per_s_median", lambda row: row["params"]["seeds"] == 1),
        ("seeds", "seed_updates_per_s", lambda row: row["params"]["batch_size"] == usual),
    ]
    for axis, (along, value, wanted) in zip(axes, panels):
        for mode in MODES:
            for precision, style in zip(PRECISIONS, ("-", "--", ":")):
                chosen = [row for row in plain if wanted(row)]
                points = sorted(
                    (row["params"][along], row["values"][value])
                    for row in chosen
                    if row["params"]["mode"] == mode and row["params"]["precision"] == precision
                )
                if points:
                    line = {"color": f"C{MODES.index(mode)}", "linestyle": style, "marker": "o", "markersize": 3}
                    axis.plot(*zip(*points), label=f"{mode}, {precision}", **line)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(along.replace("_", " "))
        axis.set_ylabel(value.removesuffix("_median").replace("_per_s", " / s").replace("_", "-"))
        axis.grid(alpha=0.3)
    if updates:
        axes[0].legend(fontsize=6)
    timed = [row for row in results.of("bench", "kernel") if "over_compile" in row["values"]]
    axes[2].barh([_name(row) for row in timed], [row["values"]["over_compile"] for row in timed])
    axes[2].axvline(1.0, color="black", linewidth=0.8)
    axes[2].tick_params(axis="y", labelsize=6)
    axes[2].invert_yaxis()
    axes[2].set_xlabel("time of torch.compile over time of the kernel" if timed else "no kernel was timed")
    return figure


def _draw_learn(results: Results) -> Any:
    rows = [row for row in _curves(results.folder) if row["metric"] == "success_last"]
    # other sizes than the paper's are a setting
    names = ("task", "method", "setting")
    cells = list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))
    figure, axes = pages.subplots(1, max(len(cells), 1), figsize=(3.6 * max(len(cells), 1), 3.4), squeeze=False)
    for axis, cell in zip(axes[0], cells):
        own = [row for row in rows if tuple(row[name] for name in names) == cell]
        for seed in sorted({int(row["seed"]) for row in own}):
            points = sorted((int(row["steps"]), float(row["value"])) for row in own if int(row["seed"]) == seed)
            axis.plot(*zip(*points), linewidth=0.9, label=f"seed {seed}")
        axis.set_title(", ".join(cell), fontsize=8)
        axis.set_xlabel("updates")
        axis.set_ylim(-0.05, 1.05)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("success at the last step")
    return figure


def _curves(folder: Path) -> list[dict[str, str]]:
    path = folder / "learn.tar.gz"
    if not path.is_file():
        return []
    with tarfile.open(path) as archive:
        if "curves.csv" not in archive.getnames():
            return []
        file = archive.extractfile("curves.csv")
        assert file is not None
        return list(csv.DictReader(file.read().decode().splitlines()))


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or one figure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what gpu.py left")
    parser.add_argument("--out", type=Path, default=None, help=f"page to write; default: {PAGE.name} of the docs")
    parser.add_argument("--figure", choices=STAGES, help="draw this stage's figure into the folder, and no page")
    args = parser.parse_args(arguments)
    try:
        results = Results(args.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.figure:
        draw(results, args.figure, args.folder / f"{args.figure}.png")
        return 0
    out = args.out or (args.folder / "report.md" if results.dry_run else PAGE)
    if results.dry_run and out.resolve().is_relative_to(PAGE.parents[1]):
        print(f"error: {args.folder} is a dry run, which has no place in the docs.", file=sys.stderr)
        return 2
    out.parent.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if results.of(stage):
            draw(results, stage, out.parent / figure_name(stage))
    if (args.folder / "learn.tar.gz").is_file():
        with tarfile.open(args.folder / "learn.tar.gz") as archive:
            archive.extractall(args.folder / "learn", filter="data")
    pages.write_text(out, page(results))
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
