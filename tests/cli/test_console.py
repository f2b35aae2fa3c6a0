"""What a person sees: the summary of a run that passed and of one that was refused, answers, bars."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from clinic import STUDY, write_study
from clinic_fixtures import call
from results import both, figures, gate, run_metrics, verdict
from rich.console import Console

from medopt.cli.console import ConsoleReporter, print_predictions, print_rows, print_summary
from medopt.cli.run import refuse_unreleased
from medopt.core.errors import ConfigError, ReleaseRefused
from medopt.core.records import Estimate, Override
from medopt.evaluation.group_metrics import GroupMember, GroupMetrics
from medopt.experiments.group_summary import FinishedGroup
from medopt.metrics.conformal import PredictionSets
from medopt.pipeline.finished_run import FinishedRun
from medopt.release.predictor import Answer, Release
from medopt.serving.prediction_table import Row

FOLDER = "runs/clinic/20260101-000000-abcdef01"


def finished(passed: bool = True, override: Override | None = None, **changed: Any) -> FinishedRun:
    undefined = figures(0.9, auc=Estimate(None, None, None, 4, "one class only"))
    sites = {"hill": both(figures(0.8), figures(0.7)), "[bold]": both(undefined)}
    metrics = run_metrics(**({"sites": sites, "gate": gate(passed, override)} | changed))
    link = "http://127.0.0.1:5000/#/experiments/1/runs/" + "f" * 32
    return FinishedRun(metrics, Path(FOLDER), link, {"train": 12.4, "compress": 3.0})


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")


def cells(text: str, first: str) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines()]
    (row,) = [row for row in rows if row[0] == first]
    return row[1:]


def test_passed_run_shows_both_models_and_what_to_try_next(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(finished())
    text = capsys.readouterr().out
    assert "clinic, seed 3: 18 cases of the test split (95 % interval)" in text
    assert "float (onnxruntime)" in text
    assert "int8 (openvino)" in text
    assert cells(text, "auc") == ["0.900 (0.800 to 0.950)", "0.875 (0.775 to 0.925)"]
    assert cells(text, "average precision") == cells(text, "auc")
    assert cells(text, "auc at hill") == ["0.800 (0.700 to 0.850)", "0.700 (0.600 to 0.750)"]
    assert cells(text, "auc at [bold]") == ["not defined"] * 2
    assert cells(text, "time for an image") == ["9.00 ms", "3.00 ms"]
    assert cells(text, "speed over float") == ["", "3.0x"]
    assert cells(text, "size") == ["4.00 MB", "1.10 MB"]
    first, second = text.splitlines()[:2]
    assert first == "the model is better than chance: test AUC of int8 0.875 (0.775 to 0.925)"
    assert second.startswith("int8 passed the gate: nearest to its limit: ")
    assert "5.6 % (1.0 to 12.0) of the decisions flip on 18 validation cases; allowed: 20 %" in text
    assert "a probability of validation case c0ffee moves by 20 points (0.12 to 0.32): look at that case" in text
    assert "train 12, compress 3" in text
    assert "medopt verify runs/clinic/20260101-000000-abcdef01/release" in text
    assert "medopt ui --runs runs " in text


def test_refused_run_names_no_release(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(finished(passed=False))
    text = capsys.readouterr().out
    assert "int8 refused by the gate: the decision flips" in text
    assert "passed the gate" not in text
    assert "medopt verify" not in text
    assert "/release" not in text
    assert f"MLflow   http://127.0.0.1:5000/#/experiments/1/runs/{'f' * 32}\n" in text


def test_a_release_against_the_gate_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    override = Override("Dr. Winter", "only the latency was missed", "2026-11-23T12:00:00+00:00")
    print_summary(finished(passed=False, override=override))
    text = capsys.readouterr().out
    assert "released all the same by Dr. Winter: only the latency was missed" in text
    assert "medopt verify" in text


def test_a_useless_model_is_said_first_in_red_and_apart_from_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = StringIO()
    console = Console(file=seen, force_terminal=True, width=200, highlight=False, markup=False)
    monkeypatch.setattr("medopt.cli.console.plain_console", lambda: console)
    print_summary(finished(verdict=verdict(reasons=("int8: test AUC 0.644 (0.429 to 0.814)",))))
    first, second = seen.getvalue().splitlines()[:2]
    assert first.startswith("\x1b[1;31mthe model is not shown to be better than chance") and "0.644" in first
    assert second.startswith("\x1b[1;32mint8 passed the gate")
    assert "/release" not in seen.getvalue()


def test_a_gate_that_cannot_tell_names_no_release(capsys: pytest.CaptureFixture[str]) -> None:
    cannot = gate(passed=False, undecided=True)
    print_summary(finished(gate=cannot))
    text = capsys.readouterr().out
    assert "int8: the gate cannot tell: the decision flips" in text and "/release" not in text


def test_one_site_has_no_row_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(finished(sites={"unknown": both(figures(0.9))}))
    assert "auc at" not in capsys.readouterr().out


def predictor(labels: list[str], threshold: Any, band: Any = None, sets: PredictionSets | None = None) -> Release:
    model = SimpleNamespace(threshold=threshold, band=band, sets=sets, rule="fixed")
    info = SimpleNamespace(labels=labels, models={"int8": model}, number=None)
    return cast(Release, SimpleNamespace(info=info, kind="int8", engine=SimpleNamespace(name="openvino")))


def answered(name: str) -> Row:
    return Row(name, Answer({"no": 0.25, "yes": 0.75}, "yes", (1.1,)))


def test_answers_and_refusals_stand_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_predictions([answered("a[0].dcm"), Row("b.dcm", None, "not a scan")], predictor(["no", "yes"], 0.61234))
    text = capsys.readouterr().out
    assert cells(text, "a[0].dcm") == ["yes", "0.250", "0.750"]
    assert cells(text, "b.dcm") == ["refused", "", ""]
    assert "int8 model in openvino; decided: yes from 0.6123 on" in text


def test_long_list_is_cut_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_predictions([answered(f"{index}.dcm") for index in range(45)], predictor(["no", "yes"], 0.5))
    text = capsys.readouterr().out
    assert "│ 39.dcm" in text
    assert "│ 40.dcm" not in text
    assert "and 5 more in the CSV" in text


@pytest.mark.parametrize(
    ("threshold", "said"),
    [((0.25, 0.5), "no from 0.2500 on, yes from 0.5000 on"), (None, "the most probable label")],
)
def test_rule_of_the_decision_is_told(capsys: pytest.CaptureFixture[str], threshold: Any, said: str) -> None:
    print_predictions([answered("a.dcm")], predictor(["no", "yes"], threshold))
    assert f"decided: {said}\n" in capsys.readouterr().out


def test_band_of_undecided_cases_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_predictions([answered("a.dcm")], predictor(["no", "yes"], 0.5, (0.25, 0.75)))
    assert "left undecided: from 0.2500 up to 0.7500" in capsys.readouterr().out


def test_what_prediction_sets_promise_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    sets = PredictionSets(0.9, (0.3, 0.0), (40, 5))
    print_predictions([answered("a.dcm")], predictor(["no", "yes"], 0.5, (0.25, 0.75), sets))
    out = capsys.readouterr().out
    assert "of new patients of each class, at least 90 %" in out.lower()
    assert "no guarantee is possible for 1 of 2 classes: a coverage of 0.9 takes 9 validation patients" in out


def test_rows_round_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("replayed", [{"case": "golden/1.dcm", "difference": 0.000123456}])
    text = capsys.readouterr().out
    assert text.startswith("replayed")
    assert cells(text, "golden/1.dcm") == ["0.0001235"]


def on_terminal(reporter: ConsoleReporter) -> StringIO:
    reporter.console = Console(file=StringIO(), force_terminal=True, width=140, highlight=False, markup=False)
    return cast(StringIO, reporter.console.file)


def test_bar_shows_count_and_fields_and_goes_when_full() -> None:
    reporter = ConsoleReporter()
    seen = on_terminal(reporter)
    advance = reporter.progress(10, "epoch 1/4")
    advance(4, loss="0.693")
    bar = reporter._progress
    assert bar is not None
    bar.refresh()
    text = seen.getvalue()
    assert "epoch 1/4" in text
    assert "4/10" in text
    assert "loss 0.693" in text
    assert not bar.finished
    advance(6, loss="0.5")
    assert bar.finished
    assert not bar.live.is_started


def test_new_stage_ends_the_bar_before_it() -> None:
    reporter = ConsoleReporter()
    seen = on_terminal(reporter)
    reporter.progress(10, "reading")
    bar = reporter._progress
    assert bar is not None
    reporter.stage("train", "unchanged, skipped")
    assert not bar.live.is_started
    assert "unchanged, skipped" in seen.getvalue()
    reporter.close()  # a second time does no harm


def test_log_file_takes_lines_but_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.stage("train", "")
    advance = reporter.progress(2, "epoch")
    advance(2, loss=1)
    reporter.message("a long line with [brackets] " + "x" * 200)
    reporter.close()
    caught = capsys.readouterr()
    assert caught.out == ""
    assert [line.rstrip() for line in caught.err.splitlines()] == [
        "train",
        "  a long line with [brackets] " + "x" * 200,
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter(quiet=True)
    reporter.stage("train", "note")
    reporter.message("line")
    assert capsys.readouterr() == ("", "")


def test_what_the_study_accepted_stands_beneath_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    notes = [
        "near_duplicates, accepted by the study: 42 of 156 test images leak: a.png and b.png",
        "From two scanners.",
    ]
    print_summary(finished(data_notes=tuple(notes)))
    text = capsys.readouterr().out
    assert "near_duplicates, accepted by the study: 42 of 156 test images leak" in text
    assert "a.png" not in text
    assert "two scanners" not in text


NOT_BETTER = verdict(reasons=("int8: test AUC 0.644 (0.429 to 0.814)",))


def group(*members: tuple[bool, bool, str], ensemble: FinishedRun | None = None) -> FinishedGroup:
    """Members as (better than chance, passed by the gate, outcome)."""
    rows = tuple(
        GroupMember(
            seed=seed,
            fold=None,
            folder=f"runs/clinic/{seed}",
            mlflow_run_id=None,
            gate_passed=passed,
            outcome=outcome,
            better_than_chance=better,
        )
        for seed, (better, passed, outcome) in enumerate(members)
    )
    metrics = GroupMetrics(
        study="clinic",
        seeds=tuple(range(len(rows))),
        folds=0,
        members=rows,
        test=both({}),
        sites={},
        cases=18,
        confidence=0.95,
        data_notes=(),
        mlflow_run_id=None,
    )
    return FinishedGroup(metrics, Path("runs/clinic/fleet-1"), "", ensemble)


def refusal(*ends: FinishedRun | FinishedGroup) -> str:
    with pytest.raises(ReleaseRefused) as caught:
        refuse_unreleased(ends)
    return str(caught.value)


def test_a_refusal_names_what_helps_this_run_and_nothing_else() -> None:
    refuse_unreleased([finished(), group((True, True, "released"), ensemble=finished())])
    by_gate = refusal(finished(passed=False))
    assert "clinic is not released: the decision flips." in by_gate and "judges int8 anew" in by_gate
    assert by_gate.endswith("--override NAME --reason TEXT.") and "add validation patients" not in by_gate
    by_model = refusal(finished(verdict=NOT_BETTER))
    assert "better than chance" in by_model and "int8 anew" not in by_model and "compression.gate" not in by_model
    unsure = refusal(finished(gate=gate(passed=False, undecided=True)))
    assert "add validation patients" in unsure and "compression.gate.flips_bound" in unsure


def test_a_refusal_of_several_studies_names_each_and_how_to_override_one() -> None:
    text = refusal(finished(passed=False, study="first"), finished(), finished(verdict=NOT_BETTER, study="second"))
    assert "first is not released: the decision flips." in text
    assert "second is not released: the model is not shown to be better than chance" in text
    assert text.endswith("--override NAME --reason TEXT (give that study alone).")


def test_an_ensemble_takes_an_override_and_its_members_none() -> None:
    members = ((True, True, "released"), (False, True, "model refused"))
    text = refusal(group(*members, ensemble=finished(passed=False)))
    assert "The ensemble of clinic is not released: the decision flips." in text
    assert "1 member has no release: runs/clinic/1 (model refused); metrics.json has the reasons." in text
    assert "judges int8 anew" in text and text.endswith("--override NAME --reason TEXT.")
    of_models = refusal(group((False, True, "model refused"), (False, True, "model refused")))
    assert of_models.startswith("2 members have no release: ") and "int8" not in of_models
    assert "--override" not in of_models
    named = Override("Dr. Winter", "for a reader study", "2026-11-23T12:00:00+00:00")
    refuse_unreleased([group(*members, ensemble=finished(passed=False, override=named))])
    assert "judges int8 anew" in refusal(group((True, False, "gate refused")))
    assert "add validation patients" in refusal(group((True, False, "gate cannot tell")))


@pytest.mark.parametrize(("name", "reason"), [(" ", "a reader study"), ("A. Reader", "\t"), ("", "x"), ("-", "x")])
def test_an_override_takes_a_name_and_a_reason_in_words(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="takes the name of a person and a reason"):
        Override.now(name, reason)


def test_the_command_takes_no_blank_override(tmp_path: Path) -> None:
    words = ("run", write_study(tmp_path, STUDY), "--data", tmp_path, "--runs", tmp_path)
    call(*words, "--override", "  ", "--reason", "x").refused(2, "ConfigError", "takes the name of a person")
    call(*words, "--override", "A. Reader", "--reason", " ").refused(2, "ConfigError", "takes the name of a person")
    call(*words, "--override", "A. Reader").refused(2, "ConfigError", "--override NAME and --reason TEXT go together")
    old = call(*words, "--override-gate", " ", "--reason", "x")
    assert "--override-gate is now --override" in old.stderr and old.code == 2
