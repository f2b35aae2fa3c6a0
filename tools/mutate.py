"""How many small changes of the critical modules do their tests notice?

Each change (a mutant) is made in a copy of the repository, never in the working tree, and the tests that
`tools/mutation.toml` names for the module are run on it until the first failure. Printed are the score of each module
and the changes that no test noticed. A change that cannot be noticed is listed in `mutation.toml` with its reason.

    python tools/mutate.py                     # 15 changes of each module, the same for the same --seed
    python tools/mutate.py spool ledger --sample 0  # all changes of the modules with these words in their path
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".*", "__pycache__", "runs", "data", "*.db", "build", "*.egg-info")
MIN_SECONDS, TIMES = 20.0, 6.0  # a mutant's tests may take as many times as long as without it

COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt,), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt,), ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip
NAMES = {
    **{"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"},
    **{"LOCK_EX": "LOCK_SH", "argmax": "argmin", "floor": "ceil", "ceil": "floor"},
}
UNWRAPPED = {"abs", "sorted", "set"}
TEXT = (  # words of SQL, and what they become
    (r"\bCOMMIT\b", "ROLLBACK"), (r"\bROLLBACK\b", "COMMIT"), (r"=FULL\b", "=OFF"), (r"=WAL\b", "=DELETE"),
    (r"=ON\b", "=OFF"), (r"\bIMMEDIATE\b", "DEFERRED"), (r" AND \w+ !?= ('\w+'|\?\d?|\d)", ""), (r" AND image\b", ""), (r" OR (?!IGNORE)", " AND "),
    (r"(?<=WHERE \w{3}) = ", " != "), (r" AND (\w+) = ", r" AND \1 != "), (r" != ", " = "), (r" IN ", " NOT IN "), (r" \+ ", " - "),
    (r"\bEXISTS\b", "NOT EXISTS"), (r" ORDER BY (\w+),", " ORDER BY"), (r" ORDER BY (\w+)", r" ORDER BY \1 DESC"),
    (r"\b0\b", "1"), (r"\bOR IGNORE\b", "OR REPLACE"), (r" < ", " <= "), (r" <= ", " < "), (r", \w+ = 0", ""),
    (r"= 0, ", "= 1, "), (r"'receiving'", "'ready'"), (r"'ready'", "'receiving'"), (r"'waiting'", "'parked'"),
    (r"'working'", "'done'"), (r"\bDEFAULT 0", "DEFAULT 1"),
)  # fmt: skip
SQL = re.compile(r"\b(SELECT|UPDATE|INSERT|DELETE|PRAGMA|BEGIN|COMMIT|ROLLBACK|CREATE|ALTER|WHERE|ORDER BY)\b")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: its line, the old and the new text, and the whole new source."""

    line: int
    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All changes of a module, in the order of its lines, each once."""
    tree = ast.parse(source)
    found: dict[tuple[int, str], Mutant] = {}
    for node, name, value in list(_fields(tree)):
        for new in _changed(node, name, value):
            line = getattr(value, "lineno", getattr(node, "lineno", 0))
            before = _text(value if isinstance(value, ast.expr) else node)
            if name == "body" and isinstance(value, list) and isinstance(new, list):
                at = next(at for at, old in enumerate(value) if at >= len(new) or new[at] is not old)
                line, before = value[at].lineno, _text(value[at])
            setattr(node, name, new)
            if name == "body" and isinstance(new, list):
                after = f"after {_text(new[at])}" if len(new) == len(value) > 1 else "left out"
            else:
                after = _text(new if isinstance(new, ast.expr) else node)
            change = f"{before} -> {after}"
            found.setdefault((line, change), Mutant(line, change, ast.unparse(ast.fix_missing_locations(tree))))
            setattr(node, name, value)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _fields(node: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """Every field below a node that may change: no annotation, decorator, import, docstring or message."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.AnnAssign) and not getattr(node, "value", 0):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "exc", "cause", "bases", "msg"):
            continue
        if isinstance(node, ast.Call) and _text(node.func).startswith(("log.", "TypeVar", "re.compile")):
            continue
        yield node, name, value
        if isinstance(node, ast.Subscript) and isinstance(value, ast.Constant):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_docstring(child) and not isinstance(child, ast.JoinedStr):
                yield from _fields(child)


def _changed(node: ast.AST, name: str, value: object) -> Iterator[object]:
    """The other values that this field of a node takes."""
    if name == "body" and isinstance(value, list):
        yield from _other_bodies(value)
    elif isinstance(node, ast.Compare) and name == "ops":
        for at, op in enumerate(node.ops):
            yield from ([*node.ops[:at], other(), *node.ops[at + 1 :]] for other in COMPARE[type(op)])
    elif isinstance(node, ast.BinOp) and isinstance(value, ast.operator) and _is_path(node):
        return
    elif isinstance(value, ast.operator) and type(value) in OPERATORS:
        yield OPERATORS[type(value)]()
    elif isinstance(value, ast.boolop):
        yield ast.Or() if isinstance(value, ast.And) else ast.And()
    elif name == "test" and isinstance(value, ast.expr) and not isinstance(value, ast.Compare):
        yield ast.UnaryOp(ast.Not(), value)
    elif isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not | ast.USub):
        yield value.operand
    elif isinstance(value, ast.Call) and len(value.args) and _text(value.func).split(".")[-1] in UNWRAPPED:
        yield value.args[0]
    elif isinstance(node, ast.Subscript) and isinstance(value, ast.Constant) and isinstance(value.value, int):
        yield ast.Constant(value.value + 1)
    elif name in ("id", "attr") and value in NAMES:
        yield NAMES[str(value)]
    elif isinstance(node, ast.Constant) and name == "value":
        yield from _other_constants(value)


def _other_bodies(body: list[ast.stmt]) -> Iterator[list[ast.stmt]]:
    """A statement left out, or exchanged with the next one."""
    for at, statement in enumerate(body):
        rest = [*body[:at], *body[at + 1 :]]
        is_assignment = isinstance(statement, ast.Assign) and not isinstance(statement.targets[0], ast.Name | ast.Tuple)
        if isinstance(statement, ast.AugAssign | ast.Raise | ast.Continue) or is_assignment or _is_call(statement):
            yield rest or [ast.Pass()]
        if at + 1 < len(body) and (_is_call(statement) or isinstance(statement, ast.Try)):
            yield [*body[:at], body[at + 1], statement, *body[at + 2 :]]


def _other_constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif value == 0o700:
        yield 0o777
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value * 1.25, value * 0.8) if value else (1.0,)
    elif isinstance(value, str) and SQL.search(value):
        for pattern, new in TEXT:
            for hit in re.finditer(pattern, value):
                yield value[: hit.start()] + hit.expand(new) + value[hit.end() :]


def _is_path(node: ast.BinOp) -> bool:
    words = re.findall(r"'|\b(?:root|folder|path|name)\b", _text(node))
    return isinstance(node.op, ast.Div | ast.Add) and bool(words)


def _is_call(statement: ast.AST) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    return not _text(statement.value.func).startswith("log.")


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _text(node: object) -> str:
    return " ".join(ast.unparse(node).split())[:160] if isinstance(node, ast.AST) else repr(node)


class Tests:
    """Runs tests in forks of this process, which has imported what they need beside medopt."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        os.environ["PYTEST_XDIST_WORKER"] = "gw0"  # what is made once for all workers is made once for all mutants
        if "MEDOPT_DATA" not in os.environ:
            os.environ["MEDOPT_DATA"] = str(ROOT.parent / "shared" / "data")
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
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.dont_write_bytecode = not keep_bytecode
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if keep_bytecode else "1"
        import hypothesis
        import pytest

        plain = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure is enough: it need not be made small
        hypothesis.settings.register_profile("mutants", phases=plain, database=None, derandomize=True)
        hypothesis.settings.load_profile("mutants")
        code = pytest.main(
            ["-x", "-q", "-n0", "-m", "not long", "-p", "no:cacheprovider", "--basetemp=made/gw0", *files]
        )
        needed = sorted(
            name for name in sys.modules if "site-packages" in str(getattr(sys.modules[name], "__file__", ""))
        )
        Path("needed.json").write_text(json.dumps(needed))
        os._exit(code)

    def preload(self) -> None:
        """Import the packages that the last tests needed: once here, not once for each mutant."""
        for name in json.loads(Path("needed.json").read_text()):
            if not name.startswith(("_pytest", "ray", "mlflow", "openvino", "__editable")):
                with suppress(Exception):
                    importlib.import_module(name)


def score(
    tests: Tests, module: str, files: list[str], accepted: dict[str, str], options: argparse.Namespace
) -> list[int]:
    """Print the survivors of one module; returns how many mutants were noticed and how many there were."""
    target = tests.copy / module
    source, begun = target.read_text(), time.monotonic()
    for keep in (True, False):  # the first run writes the bytecode, the second shows the time
        begun = time.monotonic()
        if tests.run(files, 600, keep_bytecode=keep) != 0:
            raise SystemExit(f"{module}: its tests fail without a change.\n{Path('output.txt').read_text()[-2000:]}")
        tests.preload()
    limit = max(MIN_SECONDS, TIMES * (time.monotonic() - begun))
    chosen = mutants(source)
    if 0 < options.sample < len(chosen):
        chosen = sorted(random.Random(options.seed).sample(chosen, options.sample), key=lambda mutant: mutant.line)
    noticed, counted = 0, 0
    for bytecode in target.parent.glob(f"__pycache__/{target.stem}.*.pyc"):
        bytecode.unlink()
    for mutant in chosen:
        if mutant.change in accepted:
            continue
        target.write_text(mutant.source)
        was_noticed = tests.run(files, limit) != 0
        noticed, counted = noticed + was_noticed, counted + 1
        if not was_noticed:
            print(f"  {module}:{mutant.line}: {mutant.change}", flush=True)
    target.write_text(source)
    print(f"{module}: {noticed} of {counted} noticed", flush=True)
    return [noticed, counted]


def main() -> None:
    """Run the sample, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only modules with one of these in their path")
    parser.add_argument("--sample", type=int, default=15, help="changes of each module; 0: all (default 15)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another sample (default 0)")
    options = parser.parse_args()
    table = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text())
    totals = []
    memory = Path("/dev/shm")  # where fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "medopt", ignore=shutil.ignore_patterns(*LEFT_OUT)))
        tests = Tests(copy)
        for module, files in table["modules"].items():
            if not options.words or any(word in module for word in options.words):
                totals.append(score(tests, module, files, table.get("accepted", {}).get(module, {}), options))
        os.chdir(ROOT)
    noticed, counted = (sum(column) for column in zip(*totals, strict=True))
    print(f"all: {noticed} of {counted} noticed, {noticed / max(1, counted):.0%}")


if __name__ == "__main__":
    main()
