"""The small changes of a module: comparisons, constants, operators, words of SQL, statements and their order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
BODIES = ("body", "orelse", "finalbody")
KEPT = ("annotation", "returns", "decorator_list", "type_params", "exc", "cause", "bases", "msg")
UNWRAPPED = {"abs", "sorted", "set"}
TEXT = (  # words of SQL, and what they become
    (r"\bCOMMIT\b", "ROLLBACK"), (r"\bROLLBACK\b", "COMMIT"), (r"=FULL\b", "=OFF"), (r"=WAL\b", "=DELETE"),
    (r"=ON\b", "=OFF"), (r"\bIMMEDIATE\b", "DEFERRED"), (r" AND \w+ !?= ('\w+'|\?\d?|\d)", ""), (r" AND image\b", ""),
    (r" OR (?!IGNORE)", " AND "), (r"(?<=WHERE \w{3}) = ", " != "), (r" AND (\w+) = ", r" AND \1 != "),
    (r" != ", " = "), (r" IN ", " NOT IN "), (r" \+ ", " - "), (r"\bEXISTS\b", "NOT EXISTS"), (r", \w+ = 0", ""),
    (r" ORDER BY (\w+),", " ORDER BY"), (r" ORDER BY (\w+)", r" ORDER BY \1 DESC"), (r"\b0\b", "1"),
    (r"\bOR IGNORE\b", "OR REPLACE"), (r" < ", " <= "), (r" <= ", " < "), (r"= 0, ", "= 1, "),
    (r"'receiving'", "'ready'"), (r"'ready'", "'receiving'"), (r"'waiting'", "'parked'"), (r"'working'", "'done'"),
    (r"\bDEFAULT 0", "DEFAULT 1"),
)  # fmt: skip
SQL = re.compile(r"\b(SELECT|UPDATE|INSERT|DELETE|PRAGMA|BEGIN|COMMIT|ROLLBACK|CREATE|ALTER|WHERE|ORDER BY)\b")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: its line, the old, the new text and the line as it was, and the whole new source."""

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
            if name in BODIES and isinstance(value, list) and isinstance(new, list):
                at = next(at for at, old in enumerate(value) if at >= len(new) or new[at] is not old)
                line, before = value[at].lineno, _text(value[at])
            setattr(node, name, new)
            if name in BODIES and isinstance(new, list) and isinstance(value, list):
                after = f"after {_text(new[at])}" if len(new) == len(value) > 1 else "left out"
            else:
                after = _text(new if isinstance(new, ast.expr) else node)
            change = f"{before} -> {after} | {source.splitlines()[line - 1].strip()}"
            found.setdefault((line, change), Mutant(line, change, ast.unparse(ast.fix_missing_locations(tree))))
            setattr(node, name, value)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _fields(node: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """Every field below a node that may change: no annotation, decorator, import, docstring or message."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.AnnAssign) and not getattr(node, "value", 0):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return  # a guard of the programmer's, of lengths that agree
    for name, value in ast.iter_fields(node):
        if name in KEPT or (isinstance(node, ast.Call) and _text(node.func).startswith(("log.", "re.compile"))):
            continue
        yield node, name, value
        if isinstance(node, ast.Subscript) and isinstance(value, ast.Constant):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_docstring(child) and not isinstance(child, ast.JoinedStr):
                yield from _fields(child)


def _changed(node: ast.AST, name: str, value: object) -> Iterator[object]:
    """The other values that this field of a node takes."""
    if name in BODIES and isinstance(value, list):
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
    elif name == "test" and isinstance(value, ast.expr) and not isinstance(value, ast.Compare | ast.UnaryOp):
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
    is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return is_call and not _text(statement).startswith("log.")


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _text(node: object) -> str:
    return " ".join(ast.unparse(node).split())[:160] if isinstance(node, ast.AST) else repr(node)
