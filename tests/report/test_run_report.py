"""A run's report: one file, every figure from the records, nothing fetched, nothing executed."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import Finished

from medopt.core.errors import DataError
from medopt.core.format import format_estimate, format_share
from medopt.evaluation.run_metrics import RunMetrics
from medopt.pipeline.reevaluate import evaluate_table, open_table
from medopt.report import write_report
from medopt.report.run_records import read_run


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A run folder that a test may change."""
    return Path(shutil.copytree(finished.folder, tmp_path / finished.folder.name))


def words(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", page.read_text()))


def test_the_run_wrote_it_and_it_needs_no_network(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:image/png;base64,|#)", page)
    assert "<script" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)


def test_charts_are_drawings_with_readable_text_and_a_sentence_on_how_to_read_each(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text()
    charts = re.findall(r'<figure tabindex="0"><svg .*?</figure>', page, flags=re.DOTALL)
    assert len(charts) == 9
    for chart in charts:
        assert re.search(r'aria-label="[^"]{20,}"', chart) and re.search(r"<figcaption>[^\n]{20,}</figcaption>", chart)
        sizes = [float(one) for one in re.findall(r"font-size: ([0-9.]+)px", chart)]
        # in points, of which three are four pixels: text is at least 12 pixels high, save an axis's power of ten
        assert len(sizes) > 5 and sum(size < 9 for size in sizes) <= 2
        (width,) = re.findall(r'<svg [^>]*?width="(\d+)"', chart)
        (box,) = re.findall(r'<svg [^>]*?viewBox="0 0 ([0-9.]+) ', chart)
        assert int(width) == round(float(box) * 4 / 3) <= 1100
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(ids)


def test_terms_are_explained_and_guidelines_point_to_sections_that_are_there(finished: Finished, copied: Path) -> None:
    page = (finished.folder / "report.html").read_text()
    assert re.search(r'<abbr title="the share of the cases with the finding[^"]+">sensitivity</abbr>', page)
    assert '<h2 id="glossary">' in page and '<a href="#explanation">Explanation</a></td>' in page
    (copied / "explanations.json").unlink()
    shutil.rmtree(copied / "figures" / "explain")
    without = write_report(copied).read_text()
    assert "#explanation" not in without and "not in this report" in without


def test_a_run_without_drawings_shows_its_pictures(copied: Path) -> None:
    for path in (copied / "figures").glob("*.svg"):
        path.unlink()
    page = write_report(copied).read_text()
    assert "<svg" not in page and page.count('<img src="data:image/png;base64,') == 10


def test_the_first_page_answers_four_questions_with_the_figures_of_the_records(finished: Finished) -> None:
    metrics = RunMetrics.read(finished.folder)
    text, test = words(finished.folder / "report.html"), metrics.test.int8
    for question in ("Does it work?", "For whom not?", "How sure is that?", "What did int8 change?"):
        assert question in text
    assert format_estimate(test.auc) in text and format_estimate(test.brier) in text
    assert f"{metrics.size_bytes.int8 / 1e6:.2f} MB" in text
    assert "Calibration, fitted on validation: " in text
    assert "degraded in 2 ways" in text and "The out-of-domain check before it declines" in text


def test_what_a_stage_did_not_write_is_left_out(copied: Path) -> None:
    for name in ("robustness.json", "domain.json", "explanations.json"):
        (copied / name).unlink()
    text = words(write_report(copied))
    assert "degraded in" not in text and "Scans that are declined" not in text and "Performance" in text


def test_a_refused_model_is_called_refused(copied: Path) -> None:
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["gate"] |= {"passed": False, "reasons": ["worse by 0.2"]}
    (copied / "metrics.json").write_text(json.dumps(metrics))
    text = words(write_report(copied))
    assert "refused by the gate" in text and "worse by 0.2" in text and "There is no release" in text
    metrics["gate"]["undecided"] = True
    (copied / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(copied).read_text()
    assert '<span class="badge unsure">int8: the gate cannot tell</span>' in page
    assert "The gate cannot tell: worse by 0.2" in words(copied / "report.html")


def test_what_is_no_better_than_chance_is_called_so_first_and_in_red(copied: Path) -> None:
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["verdict"]["reasons"] = ["int8: test AUC 0.644 (0.429 to 0.814)"]
    (copied / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(copied).read_text()
    badges = re.findall(r'<span class="badge (\w+)">([^<]+)<', page)
    assert badges[0] == ("bad", "the model is not shown to be better than chance")
    assert ("good", "int8 passed the gate") in badges
    text = words(copied / "report.html")
    assert "0.644 (0.429 to 0.814)" in text and "There is no release." in text


def test_a_run_of_version_0_1_0_says_so_from_its_interval(copied: Path) -> None:
    metrics = json.loads((copied / "metrics.json").read_text())
    del metrics["verdict"]
    metrics["test"]["int8"]["auc"] |= {"value": 0.7, "low": 0.45, "high": 0.9, "note": ""}
    (copied / "metrics.json").write_text(json.dumps(metrics))
    assert "0.700 (0.450 to 0.900). That is not shown to be better than chance." in words(write_report(copied))


def test_names_from_a_manifest_are_text_and_no_markup(copied: Path) -> None:
    study = yaml.safe_load((copied / "study.yaml").read_text())
    study["question"] = "<img src=x onerror=alert(1)> & more?"
    (copied / "study.yaml").write_text(yaml.safe_dump(study))
    page = write_report(copied).read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_a_figure_that_is_not_defined_is_said_so(copied: Path) -> None:
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["test"]["int8"]["auc"] = {"value": None, "low": None, "high": None, "n": 5, "note": "a class is missing"}
    (copied / "metrics.json").write_text(json.dumps(metrics))
    text = words(write_report(copied))
    assert "an AUC of not defined" in text and "a class is missing" in text
    assert not re.search(r"\b(nan|None)\b", text.split("Every setting")[0])


def test_splits_are_counted_from_the_runs_own_manifest(finished: Finished) -> None:
    splits = read_run(finished.folder).splits
    with (finished.folder / "predictions.csv").open(newline="") as stream:
        predicted = Counter(row["split"] for row in csv.DictReader(stream) if row["model"] == "float")
    assert {name: splits[name].images for name in ("val", "test")} == predicted
    assert all(sum(one.labels.values()) == one.images == sum(one.sites.values()) for one in splits.values())


def test_what_is_promised_to_each_class_is_told_with_what_became_of_it(copied: Path) -> None:
    table = open_table(copied, changes={"abstain": {"coverage": 0.8}})
    found = evaluate_table(table, "test", ["int8"]).models["int8"]
    band, sets = found.selective.band, found.operating_point.sets
    assert band is not None and sets is not None and len(band.kept) == 2 and band.coverage.value is not None
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["operating_point"]["int8"] = json.loads(found.model_dump_json())["operating_point"]
    metrics["selective"]["int8"] = json.loads(found.model_dump_json())["selective"]
    (copied / "metrics.json").write_text(json.dumps(metrics))
    text = words(write_report(copied))
    assert "What is promised to each class, int8" in text and "at least 80 % have their images answered" in text
    assert format_share(band.kept[0]) in text and format_share(band.coverage) in text
    few = replace(sets, coverage=0.99, floors=(0.0, 0.0))
    metrics["operating_point"]["int8"]["sets"] = asdict(few)
    (copied / "metrics.json").write_text(json.dumps(metrics))
    assert "No guarantee is possible for 2 of 2 classes: a coverage of 0.99 takes 99" in words(write_report(copied))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluated run"):
        write_report(tmp_path)
