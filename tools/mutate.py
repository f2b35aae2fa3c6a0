"""How many small changes of the critical modules do their tests notice?

Each change (a mutant) is made in a copy of the repository, never in the working tree, and the tests that
`tools/mutation.toml` names for the module are run on it until the first failure. Printed are the score of each module
and the changes that no test noticed. A change that cannot be noticed is listed in `mutation.toml` with its reason.

    python tools/mutate.py                          # 15 changes of each module, the same for the same --seed
    python tools/mutate.py spool ledger --sample 0  # all changes of the modules with one of these words in their path
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mutants import mutants

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".*", "__pycache__", "*.db", "*.egg-info")
LEFT_OUT_ABOVE = ("runs", "data", "build")  # of the repository's own folder alone: medopt/data is code
MIN_SECONDS, TIMES = 20.0, 6.0  # a mutant's tests may take as many times as long as without it


class Tests:
    """Runs tests in forks of this process, which has imported what they need beside medopt."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        os.environ["PYTEST_XDIST_WORKER"] = "gw0"  # what is made once for all workers is made once for all mutants
        os.environ.setdefault("MEDOPT_DATA", str(ROOT.parent / "shared" / "data"))
        sys.path[:0] = [str(copy)]
        os.chdir(copy)

    def run(self, files: Sequence[str], seconds: float, *, keep_bytecode: bool = False) -> int:
        """The exit code of pytest; -1 where the time was over. The output is in `output.txt` of the copy."""
        process = os.fork()
        if process == 0:
            self._tests(files, keep_bytecode=keep_bytecode)
        end = time.monotonic() + seconds
        while (ended := os.waitpid(process, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.02)
        with suppress(OSError):  # also what the tests have started
            os.killpg(process, signal.SIGKILL)
        if ended[0] == 0:
            os.waitpid(process, 0)
            return -1
        return os.waitstatus_to_exitcode(ended[1])

    def _tests(self, files: Sequence[str], *, keep_bytecode: bool) -> None:
        os.setsid()
        Path("made").mkdir(exist_ok=True)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.dont_write_bytecode = not keep_bytecode
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if keep_bytecode else "1"
        import hypothesis
        import pytest

        plain = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure is enough: it need not be made small
        hypothesis.settings.register_profile("mutants", phases=plain, database=None, derandomize=True)
        hypothesis.settings.load_profile("mutants")
        options = ["-x", "-q", "-n0", "-m", "not long", "-p", "no:cacheprovider", "--basetemp=made/gw0"]
        code = pytest.main([*options, *files])
        needed = [
            name for name, module in sys.modules.items() if "site-packages" in str(getattr(module, "__file__", ""))
        ]
        Path("needed.json").write_text(json.dumps(needed))
        os._exit(code)

    def preload(self) -> None:
        """Import the packages that the last tests needed: once here, not once for each mutant."""
        for name in json.loads(Path("needed.json").read_text()):
            if not name.startswith(("_pytest", "ray", "mlflow", "__editable")):
                with suppress(Exception):
                    importlib.import_module(name)


def score(tests: Tests, module: str, files: list[str], equal: list[str], options: argparse.Namespace) -> list[int]:
    """Print the survivors of one module; returns how many mutants were noticed and how many there were."""
    target = tests.copy / module
    source, begun = target.read_text(), 0.0
    for keep in (True, False):  # the first run writes the bytecode, the second shows the time
        begun = time.monotonic()
        if tests.run(files, 600, keep_bytecode=keep) != 0:
            raise SystemExit(f"{module}: its tests fail without a change.\n{Path('output.txt').read_text()[-2000:]}")
        tests.preload()
    limit = max(MIN_SECONDS, TIMES * (time.monotonic() - begun))
    chosen = [mutant for mutant in mutants(source) if not mutant.change.startswith(tuple(equal))]
    if 0 < options.sample < len(chosen):
        chosen = sorted(random.Random(options.seed).sample(chosen, options.sample), key=lambda mutant: mutant.line)
    for bytecode in target.parent.glob(f"__pycache__/{target.stem}.*.pyc"):
        bytecode.unlink()
    noticed = 0
    for mutant in chosen:
        target.write_text(mutant.source)
        if tests.run(files, limit):
            noticed += 1
        else:
            print(f"  {module}:{mutant.line}: {mutant.change}", flush=True)
    target.write_text(source)
    print(f"{module}: {noticed} of {len(chosen)} noticed", flush=True)
    return [noticed, len(chosen)]


def left_out(folder: str, names: list[str]) -> set[str]:
    """The names in a folder of the repository that are not copied."""
    above = [name for name in names if name in LEFT_OUT_ABOVE] if Path(folder) == ROOT else []
    return {*above, *shutil.ignore_patterns(*LEFT_OUT)(folder, names)}


def chosen_modules(modules: Sequence[str], words: Sequence[str]) -> list[str]:
    """The modules with one of the words in their path, all without words; raises ValueError for a word in none."""
    if unknown := [word for word in words if not any(word in module for module in modules)]:
        raise ValueError(f"no module of mutation.toml has {unknown[0]!r} in its path: {', '.join(modules)}")
    return [module for module in modules if not words or any(word in module for word in words)]


def main() -> None:
    """Run the sample, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only modules with one of these in their path")
    parser.add_argument("--sample", type=int, default=15, help="changes of each module; 0: all (default 15)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another sample (default 0)")
    options = parser.parse_args()
    table, totals = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text()), []
    try:
        chosen = chosen_modules(list(table["modules"]), options.words)
    except ValueError as error:
        parser.error(str(error))
    memory = Path("/dev/shm")  # where fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        tests = Tests(Path(shutil.copytree(ROOT, f"{folder}/medopt", ignore=left_out)))
        for module in chosen:
            equal = [row["change"] for row in table["equal"] if row["module"] == module]
            totals.append(score(tests, module, table["modules"][module], equal, options))
        os.chdir(ROOT)
    noticed, counted = (sum(column) for column in zip(*totals, strict=True))
    print(f"all: {noticed} of {counted} noticed, {noticed / max(1, counted):.0%}")


if __name__ == "__main__":
    main()
