"""Damages small datasets of every format in thousands of ways, reads each, and prints a table of what came of it.

    python tests/robustness/run_mutations.py                 # 21,000 damaged files and 1,000 hostile ones
    python tests/robustness/run_mutations.py --number 140 --variants 1
    python tests/robustness/run_mutations.py --log build/mutations.jsonl   # goes on where it was stopped

Each file is read in a forked worker within 5 seconds of processor time (60 of waiting) and 1 GB. It must end in a
``DatasetError`` (files of actors: in a ``ValueError``), in the data as they were, or, for formats without checksums, in
what the damaged file now says: other code than the reader's (h5py, NumPy, Python's pickle and csv) decodes it and must
find the same. The exit status is 1 if one ends otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from hostile import ACTORS, CONSTRUCTIONS, construct
from mutations import KINDS, mutated
from specimens import Specimen, specimens

from torchrl_smore.data.errors import DatasetError

SECONDS, BYTES = 5.0, 1 << 30
GOOD = ("refused", "as it was", "as it says")
BAD = ("wrong", "other error", "memory", "hang", "crash")
_BATCH = 250
_PATIENCE = 12  # seconds of waiting for each second of work

torch.set_num_threads(1)  # threads of OpenMP do not survive a fork


@dataclass(frozen=True)
class Case:
    """One file: its group in the table, what makes it, and what reads it and says how it went."""

    group: str
    name: str
    run: Callable[[Path], str]


def mutation_cases(folder: Path, number: int, seed: int) -> Iterator[Case]:
    """``number`` cases, spread over specimens and kinds of damage; ``folder`` is empty."""
    made = specimens(folder)
    plan = [(specimen, kind) for specimen in made for kind in KINDS if kind != "inner" or specimen.rewrap]
    whole = [specimen.columns(_read_whole(specimen, folder / "whole")) for specimen in made]
    by_name = {specimen.name: columns for specimen, columns in zip(made, whole)}
    for index in range(number):
        specimen, kind = plan[index % len(plan)]
        yield Case(
            specimen.name,
            f"{specimen.name}, {kind}, seed {seed}, number {index}",
            _mutation(specimen, kind, by_name[specimen.name], seed, index),
        )


def hostile_cases(variants: int, seed: int) -> Iterator[Case]:
    """``variants`` of each hostile construction, all of which must be refused."""
    for name in CONSTRUCTIONS:
        for variant in range(variants):
            yield Case(
                "hostile", f"hostile: {name}, seed {seed}, variant {variant}", _construction(name, seed, variant)
            )


def _read_whole(specimen: Specimen, folder: Path):
    _write(specimen.files, folder)
    return specimen.read(folder)


def _write(files: dict[str, bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _mutation(specimen: Specimen, kind: str, whole: dict[str, np.ndarray], seed: int, index: int):
    def run(folder: Path) -> str:
        rng = np.random.default_rng((seed, index))
        files = dict(specimen.files)
        if kind == "inner":
            assert specimen.rewrap is not None
            files = specimen.rewrap(rng, files)
        else:
            name = sorted(files)[int(rng.integers(len(files)))]
            files[name] = mutated(rng, files[name], list(specimen.files.values()), kind=kind)
        _write(files, folder)
        try:
            store = specimen.read(folder)
        except specimen.refused as error:
            return _refusal(error, folder)
        found = specimen.columns(store)
        if _same(found, whole):
            told = specimen.meta is None or kind == "inner" or store.meta == specimen.meta
            return "as it was" if told else f"wrong\tmeta {store.meta}"
        if specimen.judge is None:
            return "wrong\tdata under a checksum differ"
        try:
            with np.errstate(all="ignore"):
                said = specimen.judge(folder)
        except Exception as error:
            return f"wrong\tread, but other code cannot: {type(error).__name__}: {error}"
        return "as it says" if _same(found, said) else "wrong\tother code reads other numbers"

    return run


def _construction(name: str, seed: int, variant: int):
    refused = ValueError if name in ACTORS else DatasetError

    def run(folder: Path) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        read = construct(name, np.random.default_rng((seed, variant)), folder)
        _limit()  # what comes now, and not the making of it
        try:
            store = read()
        except refused as error:
            return _refusal(error, folder)
        return f"wrong\tread as {store}"

    return run


def _refusal(error: ValueError, folder: Path) -> str:
    if isinstance(error.__cause__, MemoryError):
        return f"memory\t{error}"
    if folder.name not in str(error):
        return f"other error\tthe message names no file: {error}"
    return "refused" if len(str(error)) < 1100 else f"other error\ta message of {len(str(error))} characters"


def _same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def outcomes(cases: Sequence[Case], folder: Path) -> Iterator[tuple[Case, str, str, float]]:
    """Runs the cases in forked workers; a worker that dies is followed by another.

    Yields:
        The case, its outcome (one of :data:`GOOD` or :data:`BAD`), details, and seconds.
    """
    first = 0
    while first < len(cases):
        batch = cases[first : first + _BATCH]
        done = 0
        reader, writer = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(reader)
            _work(batch, folder, writer)
        os.close(writer)
        with open(reader) as lines:
            for line in lines:
                outcome, detail, seconds = json.loads(line)
                yield batch[done], outcome, detail, seconds
                done += 1
        status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if done < len(batch):
            died = "hang" if -status in (signal.SIGALRM, signal.SIGPROF) else "crash"
            yield batch[done], died, f"status {status}", SECONDS
            done += 1
        first += done


def in_jobs(cases: Sequence[Case], folder: Path, jobs: int, log: Path) -> list[tuple[str, str, float]]:
    """Group, outcome and seconds of each case; ``jobs`` processes share the cases and print what goes wrong.

    Args:
        cases: all of them.
        folder: takes the files.
        jobs: how many processes.
        log: gets a line for each case that has ended; cases with a line there are not run again.
    """
    known = _ended(log, cases)
    todo = [number for number in range(len(cases)) if number not in known]
    started = []
    for job in range(jobs):
        if (process := os.fork()) == 0:
            numbers = todo[job::jobs]
            own = [cases[number] for number in numbers]
            with open(log, "a", buffering=1) as out:
                for number, ended in zip(numbers, outcomes(own, folder / f"damaged_{job}")):
                    case, outcome, detail, seconds = ended
                    out.write(json.dumps([number, case.name, outcome, seconds]) + "\n")
                    if outcome in BAD:
                        print(f"{outcome}: {case.name}: {detail}", file=sys.stderr, flush=True)
            os._exit(0)
        started.append(process)
    for process in started:
        os.waitpid(process, 0)
    ended = _ended(log, cases)
    if len(ended) != len(cases):
        raise RuntimeError(f"expected {len(cases)} outcomes, found {len(ended)}: a process was killed.")
    return [(cases[number].group, *ended[number]) for number in sorted(ended)]


def _ended(log: Path, cases: Sequence[Case]) -> dict[int, tuple[str, float]]:
    """Outcome and seconds of the cases in a log, by number."""
    lines = log.read_text().splitlines() if log.is_file() else []
    ended = {}
    for number, name, outcome, seconds in map(json.loads, lines):
        if number >= len(cases) or cases[number].name != name:
            raise ValueError(f"{log} is of other cases: its number {number} is {name!r}.")
        ended[number] = (outcome, seconds)
    return ended


def _work(batch: Sequence[Case], folder: Path, writer: int) -> None:
    faulthandler.disable()
    logging.disable(logging.CRITICAL)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 1
    with contextlib.suppress(BaseException), os.fdopen(writer, "w") as out:
        for case in batch:
            began = time.process_time()
            _limit()
            try:
                outcome = case.run(folder)
            except MemoryError:
                outcome = "memory\tMemoryError"
            except BaseException as error:
                outcome = f"other error\t{type(error).__name__}: {str(error)[:200]}"
            _limit(on=False)
            outcome, _, detail = outcome.partition("\t")
            out.write(json.dumps([outcome, detail, time.process_time() - began]) + "\n")
            out.flush()
        status = 0
    os._exit(status)


def _limit(*, on: bool = True) -> None:
    """Starts the time anew: of the processor, so that a busy machine changes nothing, and for a read that waits."""
    # the default of both signals ends a process in whatever code it is
    signal.setitimer(signal.ITIMER_PROF, SECONDS if on else 0.0)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * SECONDS if on else 0.0)


def table(counts: dict[str, Counter[str]], slowest: dict[str, float]) -> str:
    """Markdown, a row for each group."""
    heads = ["dataset", "files", "refused", "as it was", "as the file now says", *BAD, "slowest, s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    total: Counter[str] = Counter()
    for group, count in counts.items():
        total += count
        lines.append(_row(group, count, slowest[group]))
    lines.append(_row("all", total, max(slowest.values())))
    return "\n".join(lines)


def _row(group: str, count: Counter[str], slowest: float) -> str:
    cells = [f"{count[name]:,}" for name in (*GOOD, *BAD)]
    return f"| {group} | {sum(count.values()):,} | {' | '.join(cells)} | {slowest:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=21_000, help="damaged files")
    parser.add_argument("--variants", type=int, default=10, help="of each hostile construction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--log", type=Path, help="file of outcomes; what it holds already is not run again")
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torchrl_smore_mutations_") as name:
        folder = Path(name)
        cases = [
            *mutation_cases(folder / "made", arguments.number, arguments.seed),
            *hostile_cases(arguments.variants, arguments.seed),
        ]
        log = arguments.log or folder / "outcomes.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        for group, outcome, seconds in in_jobs(cases, folder, arguments.jobs, log):
            counts.setdefault(group, Counter())[outcome] += 1
            slowest[group] = max(seconds, slowest.get(group, 0.0))
    print(table(counts, slowest))
    print(f"\n{len(cases):,} files in {time.monotonic() - began:.0f} s, each within {SECONDS:g} s and 1 GB")
    return int(any(count[outcome] for count in counts.values() for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
