"""The two verdicts in words, that on the model first: what console, report, card, exports and MLflow begin with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from medopt.core.format import format_estimate
from medopt.evaluation.gate_verdict import GateRecord
from medopt.evaluation.run_metrics import ReleaseFigures, RunMetrics

Tone = Literal["good", "unsure", "bad"]
_GATE: dict[str, tuple[str, Tone]] = {
    "passed": ("int8 passed the gate", "good"),
    "cannot tell": ("int8: the gate cannot tell", "unsure"),
    "refused": ("int8 refused by the gate", "bad"),
}


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """A verdict: in a few words (`head`), and by which figures (`detail`)."""

    head: str
    detail: str
    tone: Tone

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.head}: {self.detail}" if self.detail else self.head


def verdict_lines(figures: RunMetrics | ReleaseFigures, gate: GateRecord) -> list[VerdictLine]:
    """The verdict on the model, that of the gate on int8, and who overrode one of them."""
    return list(_lines(figures, gate))


def _lines(figures: RunMetrics | ReleaseFigures, gate: GateRecord) -> Iterator[VerdictLine]:
    verdict, override = figures.verdict, gate.override
    if verdict is not None:
        grades = figures.grades
        figure = ("AUC", figures.test.int8.auc) if grades is None else ("weighted kappa", grades.int8.kappa)
        shown = f"test {figure[0]} of int8 {format_estimate(figure[1])}"
        detail = shown if verdict.better_than_chance else "; ".join(verdict.reasons)
        yield VerdictLine(f"the model is {verdict.word}", detail, "good" if verdict.better_than_chance else "bad")
        yield from (VerdictLine(remark, "", "unsure") for remark in verdict.remarks)
    head, tone = _GATE[gate.outcome]
    yield VerdictLine(head, gate.decided_by, tone)
    if override is not None:
        yield VerdictLine(f"released all the same by {override.by}", override.reason, "bad")
