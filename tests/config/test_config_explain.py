"""What `medopt config` says of a key is what the schema takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import call
from real_data import REPO

from medopt.config import Study
from medopt.config.explain import describe_key, describe_keys, study_schema
from medopt.core.errors import ConfigError
from medopt.pacs.settings import NodeSettings


def by_path(root: type = Study) -> dict[str, tuple[str, str]]:
    return {key.path: (key.type, key.default) for key in describe_keys(root)}


@pytest.mark.parametrize(
    ("key", "takes", "default"),
    [
        ("model.depth", "14, 26, 50, 101 or 152", "26"),
        ("model.width", "number > 0 or list of number > 0 (5)", "0.25"),
        ("data.labels", "list of text (2 or more)", "required"),
        ("data.series.slices", "[whole number, whole number] or null", "null"),
        ("training.batch_size", "whole number ≥ 2 or auto", "32"),
        ("training.class_weights", "none or balanced or table of text to number > 0", "none"),
        ("training.schedule.warmup", "number 0 to 1", "0.2"),
        ("training.schedule", "section", ""),
        ("evaluation.confidence", "number > 0.5 and < 1", "0.95"),
        ("prepare.size", "list of whole number 8 to 4096 (2 to 3)", "required"),
    ],
)
def test_type_choices_bounds_and_default_of_a_key(key: str, takes: str, default: str) -> None:
    assert by_path()[key] == (takes, default)


def test_keys_of_a_node_file_with_lists_of_sections_and_two_kinds_of_peers() -> None:
    keys = by_path(NodeSettings)
    assert keys["destinations"] == ("list of section (1 or more)", "required")
    assert {"destinations[].aet", "destinations[].url", "pull.source.url", "accept[].addresses"} <= set(keys)
    assert keys["port"] == ("whole number 1 to 65535", "11112")
    assert [key.path for key in describe_key("accept[].aet", NodeSettings)] == ["accept[].aet"]
    assert describe_key("accept.aet", NodeSettings) == describe_key("accept[].aet", NodeSettings)


def test_a_section_comes_with_all_keys_below_it_and_no_others() -> None:
    paths = [key.path for key in describe_key("training.schedule")]
    assert paths[0] == "training.schedule" and "training.schedule.eta_min" in paths
    assert all(path.startswith("training.schedule") for path in paths)


@pytest.mark.parametrize(("key", "near"), [("traning.lr", "training"), ("training.shedule", "schedule")])
def test_an_unknown_key_is_refused_with_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean .*{near}"):
        describe_key(key)


def test_every_default_as_it_is_shown_is_the_one_of_the_schema() -> None:
    """Written into a study file, each default gives the same study."""
    study = Study.model_validate(MINIMAL)
    for key in describe_keys():
        if key.is_section or key.default in ("", "required") or "[]" in key.path:
            continue
        *sections, name = key.path.split(".")
        place: object = study
        for section in sections:
            place = getattr(place, section)
            if place is None:  # a section that is off by default, as training.switch
                break
        if place is not None and sections[:1] != ["prepare"] and key.path != "data.labels":
            shown = yaml.safe_load(key.default)
            got = getattr(place, name)
            assert shown == pytest.approx(got) if isinstance(got, float) else str(shown) == str(got), key.path


MINIMAL = {
    "name": "lesions",
    "question": "Malignant?",
    "data": {"manifest": "m.csv", "labels": ["benign", "malignant"]},
    "prepare": {"size": [64, 64]},
}


def test_nearly_every_key_says_what_it_means() -> None:
    silent = {key.path for key in describe_keys() if not key.meaning}
    assert len(silent) < 12, silent


def test_the_schema_takes_what_a_study_takes_and_refuses_what_it_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    reads = jsonschema.Draft202012Validator(schema).is_valid
    for shipped in sorted((REPO / "pipelines").glob("*.yaml")):
        assert reads(yaml.safe_load(shipped.read_text(encoding="utf-8"))), shipped
    assert reads(MINIMAL)
    for wrong in ({"trainning": {}}, {"model": {"depth": 34}}, {"training": {"epochs": 0}}, {"name": "Big Name"}):
        assert not reads({**MINIMAL, **wrong}), wrong


def test_the_commands_print_and_write(tmp_path: Path) -> None:
    done = call("config", "explain", "training.schedule.name")
    assert done.code == 0 and "constant, cosine, cosine_restarts, one_cycle or plateau" in done.stdout
    assert "port" in call("config", "explain", "--node", "web", "--json").stdout
    call("config", "explain", "training.shedule").refused(2, "did you mean schedule")
    out = tmp_path / "study.schema.json"
    done = call("config", "schema", "--out", out)
    assert done.code == 0 and json.loads(out.read_text())["$defs"]["Model"]
    assert json.loads(call("config", "schema").stdout) == json.loads(out.read_text()) == study_schema()
