"""How the product is built: files, lines, cycles of rooms, untyped tables, long functions, names that say nothing.

    python benchmarks/structure.py               # this checkout
    python benchmarks/structure.py BEFORE AFTER  # two checkouts side by side

Everything is read from the sources with `ast`; nothing is imported, so that a checkout of any age can be measured.
Generated modules are left out.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

BANNED = ("found", "told", "one", "wanted", "asked", "shown", "made", "held")
"""Words that stand where a noun would say what it is."""
SHORT, LONG_MODULE, LONG_FUNCTION = 50, 350, 40
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its dotted name, its number of lines and its syntax tree."""

    name: str
    is_package: bool
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        """The package below medopt; the root's own modules are rooms of their own."""
        return self.name.split(".")[1] if "." in self.name else ""


def read(checkout: Path) -> dict[str, Module]:
    """Every module of medopt/ in a checkout, by its dotted name."""
    modules = {}
    for path in sorted((checkout / "medopt").rglob("*.py")):
        if "generated" in path.parts:
            continue
        parts = path.relative_to(checkout).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, parts[-1] == "__init__", text.count("\n"), ast.parse(text))
    return modules


def imports(module: Module, known: dict[str, Module]) -> set[str]:
    """The modules of medopt that a module imports, within functions too, but not for type checkers only."""
    names: set[str] = set()
    for node in _without_type_checking(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return {name for name in names if name in known and name != module.name}


def _base(module: Module, node: ast.ImportFrom) -> str:
    """The package or module that `from ... import` names; a relative one starts at the module's own package."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _without_type_checking(node)


def cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach each other, the largest first."""
    reach = {node: _reachable(node, edges) for node in edges}
    groups = {frozenset(other for other in reach[node] if node in reach[other]) for node in edges}
    return sorted((set(group) for group in groups if len(group) > 1), key=len, reverse=True)


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for following in edges.get(todo.pop(), set()) - seen:
            seen.add(following)
            todo.append(following)
    return seen


def untyped(module: Module) -> int:
    """How often `dict[str, Any]` or `Mapping[str, Any]` is written."""
    return sum(
        isinstance(node, ast.Subscript)
        and ast.unparse(node.value) in ("dict", "Mapping", "MutableMapping")
        and ast.unparse(node.slice).strip("()") == "str, Any"
        for node in ast.walk(module.tree)
    )


def functions(module: Module) -> list[tuple[str, int]]:
    """Every function with its number of lines, its docstring counted."""
    return [
        (f"{module.name}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(module.tree)
        if isinstance(node, Function)
    ]


def public_names(module: Module) -> Iterator[str]:
    """What others may write: names of the module and of its public classes, and parameters of both's functions."""
    bodies: list[list[ast.stmt]] = [module.tree.body]
    bodies += [node.body for node in module.tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    for node in (statement for body in bodies for statement in body):
        if isinstance(node, Function) and (node.name[0] != "_" or node.name == "__init__"):
            yield node.name
            yield from (argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def all_names(module: Module) -> Iterator[str]:
    """Every use of a variable, an attribute or a parameter."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def measure(checkout: Path) -> dict[str, str]:
    """The figures of one checkout, by what they count."""
    modules = read(checkout)
    if not modules:
        raise SystemExit(f"There is no medopt/ with modules in {checkout}.")
    uses = {name: imports(module, modules) for name, module in modules.items()}
    importers = Counter(target for targets in uses.values() for target in targets)
    rooms: dict[str, set[str]] = {module.room: set() for module in modules.values() if module.room}
    for name, targets in uses.items():
        room = modules[name].room
        rooms.setdefault(room, set()).update({modules[target].room for target in targets} - {room, ""})
    rooms.pop("", None)
    own = {name: module.lines for name, module in modules.items() if not module.is_package}
    longest, lines = max(own.items(), key=lambda item: item[1])
    long = [item for module in modules.values() for item in functions(module) if item[1] > LONG_FUNCTION]
    circles = cycles(rooms)
    largest = f" (largest: {', '.join(sorted(circles[0]))})" if circles else ""
    return {
        "files": f"{len(modules):,}",
        "lines": f"{sum(module.lines for module in modules.values()):,}",
        "rooms and modules at the root": str(len(rooms)),
        "of these in a cycle": f"{sum(map(len, circles))}{largest}",
        "dict[str, Any], Mapping[str, Any]": str(sum(map(untyped, modules.values()))),
        "modules with one importer": str(sum(importers[name] == 1 for name in own)),
        f"modules under {SHORT} lines": str(sum(count < SHORT for count in own.values())),
        "median module": f"{median(own.values()):.0f} lines",
        "longest module": f"{lines} lines ({longest.removeprefix('medopt.')})",
        f"modules over {LONG_MODULE} lines": str(sum(count > LONG_MODULE for count in own.values())),
        f"functions over {LONG_FUNCTION} lines": str(len(long)),
        "public names that say nothing": str(
            sum(name in BANNED for module in modules.values() for name in public_names(module))
        ),
        "all uses of such names": f"{sum(name in BANNED for m in modules.values() for name in all_names(m)):,}",
    }


def table(columns: list[dict[str, str]], heads: list[str]) -> str:
    """A Markdown table, a column a checkout."""
    rows = [["", *heads], *([name, *(column[name] for column in columns)] for name in columns[0])]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def main() -> None:
    """Print the table for the checkouts that the command line names."""
    checkouts = [Path(word) for word in sys.argv[1:]] or [Path(__file__).resolve().parents[1]]
    heads = ["before", "after"] if len(checkouts) == 2 else [path.name for path in checkouts]
    print(table([measure(path) for path in checkouts], heads))


if __name__ == "__main__":
    main()
