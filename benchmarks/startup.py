"""How long a command waits before its work begins: the whole process, from the shell and back.

    python benchmarks/startup.py [--release RELEASE --scan FILE] [--study STUDY --data DATA] [--rounds 7] [--json]

Commands take turns, so that a slow moment of the machine hits all alike. `cpu` is the time of the processors that the
process used, which a busy machine changes least; `modules` is how many Python modules it had imported at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

COUNT = "import atexit, sys; atexit.register(lambda: print('modules', len(sys.modules), file=sys.stderr))"


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over the rounds of one command."""

    command: str
    seconds: float
    fastest: float
    cpu: float
    modules: int
    limit: float | None


def main() -> None:
    """Measure and print."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        timings = measure(commands(options, Path(folder)), options.rounds, Path(folder))
    table = Table("command", "seconds", "fastest", "cpu", "modules", "aim", title=machine(), title_justify="left")
    for row in timings:
        aim = "" if row.limit is None else f"{row.limit:g}"
        table.add_row(row.command, f"{row.seconds:.2f}", f"{row.fastest:.2f}", f"{row.cpu:.2f}", str(row.modules), aim)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if options.json:
        print(json.dumps({"machine": machine(), "commands": [asdict(row) for row in timings]}))


def arguments() -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, help="a release folder, with --scan")
    parser.add_argument("--scan", type=Path, help="an image for medopt predict")
    parser.add_argument("--study", type=Path, help="a study file for medopt run --dry-run, with --data")
    parser.add_argument("--data", type=Path, help="the folder that holds its data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    return parser.parse_args()


def commands(options: argparse.Namespace, folder: Path) -> list[tuple[str, Sequence[str], int, float | None]]:
    """Name, words, expected exit code and aim in seconds of each command."""
    medopt = ["-m", "medopt"]
    rows: list[tuple[str, Sequence[str], int, float | None]] = [
        ("python -c 'pass'", ["-c", "pass"], 0, None),
        ("python -c 'import torch'", ["-c", "import torch"], 0, None),
        ("medopt --version", [*medopt, "--version"], 0, 1),
        ("medopt --help", [*medopt, "--help"], 0, 1),
        ("medopt run --help", [*medopt, "run", "--help"], 0, 1),
        ("medopt rnu (mistyped)", [*medopt, "rnu", "study.yaml"], 2, 1),
        ("medopt run NO-SUCH-FILE", [*medopt, "run", str(folder / "none.yaml")], 2, 1),
        ("medopt predict NO-SUCH-FOLDER", [*medopt, "predict", str(folder / "none"), "x.dcm"], 6, 1),
    ]
    if options.release and options.scan:
        words = ["predict", str(options.release), str(options.scan), "--out", str(folder / "answers.csv")]
        rows.append(("medopt predict RELEASE SCAN", [*medopt, *words], 0, 4))
    if options.study and options.data:
        words = ["run", str(options.study), "--data", str(options.data), "--runs", str(folder / "runs"), "--dry-run"]
        rows.append(("medopt run STUDY --dry-run", [*medopt, *words], 0, 3))
    return rows


def measure(rows: Sequence[tuple[str, Sequence[str], int, float | None]], rounds: int, folder: Path) -> list[Timing]:
    """Run all commands in turn, once to warm the disk's cache and then `rounds` times."""
    (folder / "counted").mkdir()
    (folder / "counted" / "sitecustomize.py").write_text(COUNT, encoding="utf-8")
    seconds: dict[str, list[float]] = {name: [] for name, *_ in rows}
    cpu: dict[str, list[float]] = {name: [] for name, *_ in rows}
    modules = {name: counted_modules(words, folder) for name, words, *_ in rows}
    for _ in range(rounds):
        for name, words, code, _limit in rows:
            before, begun = cpu_seconds(), time.perf_counter()
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            seconds[name].append(time.perf_counter() - begun)
            cpu[name].append(cpu_seconds() - before)
            if done.returncode != code:
                sys.exit(f"{name} ended with exit code {done.returncode}, not {code}: {done.stderr}")
    return [
        Timing(
            name,
            statistics.median(seconds[name]),
            min(seconds[name]),
            statistics.median(cpu[name]),
            modules[name],
            limit,
        )
        for name, _words, _code, limit in rows
    ]


def counted_modules(words: Sequence[str], folder: Path) -> int:
    """How many modules a command has imported when it ends."""
    paths = os.pathsep.join([str(folder / "counted"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    return int(done.stderr.splitlines()[-1].removeprefix("modules "))


def cpu_seconds() -> float:
    """Processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine() -> str:
    """The processor's name, its cores, how busy it is, and the version of Python."""
    name = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open(encoding="utf-8") as stream:
        name = next((line.partition(": ")[2].strip() for line in stream if line.startswith("model name")), name)
    load = os.getloadavg()[0]
    return f"{name}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
