"""No credential in any text: of an error, of a file that cannot be read, of a setting that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, MedoptError
from medopt.core.privacy import without_credentials
from medopt.pacs.settings import load_node_settings

SECRET = "S3cr3t0fPlanting"


@pytest.mark.parametrize(
    "text",
    [
        f"no answer from http://ann:{SECRET}@pacs/dicom-web",
        f"no answer from http://ann:{SECRET}/x@y@pacs/dicom-web.",
        f"no answer from 'postgresql+psycopg://{SECRET}@db/mlflow'",
        f"the header Authorization: Bearer {SECRET} is refused",
        f"the header authorization: basic {SECRET}== is refused",
        f"GET https://bucket/x?X-Amz-Signature={SECRET}&y=1",
        f"host=db password={SECRET} user=x",
        f"api_key={SECRET}, MLFLOW_TRACKING_PASSWORD={SECRET}",
    ],
)
def test_it_is_hidden(text: str) -> None:
    assert SECRET not in without_credentials(text)
    assert SECRET not in str(MedoptError(text)) and SECRET not in str(ConfigError(text))


@pytest.mark.parametrize(
    "text",
    ["models:/clinic@champion", "a Basic Text SR", "Bearer or Basic authentication", "mail ann@x.example", "a/b?c=d"],
)
def test_plain_texts_stay(text: str) -> None:
    assert without_credentials(text) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"destinations": [f"http://user:{SECRET}@pacs"]},
        {"destinations": f"http://user:{SECRET}@pacs"},
        {"destinations": [{"url": f"http://user:{SECRET}@pacs"}]},
        {"destinations": [{"urll": f"http://user:{SECRET}@pacs"}]},
        {"destinations": [{"url": "http://pacs", "headers": {"Authorization": f"Bearer {SECRET}"}}]},
        {"destinations": [{"url": "http://pacs", "headers": [f"Authorization: {SECRET}"]}]},
        {"destinations": [{"url": "http://pacs", "headers": {f"Authorization: {SECRET}": None}}]},
        {"destinations": [{"url": "http://pacs", "headers": {"Authorization": {"value": SECRET}}}]},
        {"destinations": [{"aet": "A", "host": f"http://user:{SECRET}@pacs", "port": 104}]},
        {"destinations": [{"aet": f"http://u:{SECRET}@pacs", "host": "pacs", "port": 104}]},
        {"destinations": [{"aet": "A", "host": "pacs", "port": f"http://u:{SECRET}@pacs"}]},
        {"pull": {"source": f"http://user:{SECRET}@pacs", "modalities": ["CR"]}},
        {"pull": f"http://user:{SECRET}@pacs"},
        {"web": {"names": [f"http://user:{SECRET}@pacs"]}},
        {"accept": [{"aet": "A", "addresses": [f"http://user:{SECRET}@pacs"]}]},
        {"quiet_seconds": f"http://user:{SECRET}@pacs"},
    ],
)
def test_a_node_file_that_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "aet": "MEDOPT", "release": "r", "spool": "s", "accept": [{"aet": "A", "addresses": ["10.0.0.0/8"]}],
        "destinations": [{"aet": "A", "host": "pacs", "port": 104}],
    }  # fmt: skip
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(values | changes))
    with pytest.raises(ConfigError) as refusal:
        load_node_settings(file)
    assert SECRET not in str(refusal.value)
    assert next(iter(changes)) in str(refusal.value)


@pytest.mark.parametrize("load", [load_study, load_node_settings])
@pytest.mark.parametrize("line", [f"a: b: {SECRET}", f"- x\nheaders: {{A: {SECRET}", f"\t{SECRET}: 1", f"a: '{SECRET}"])
def test_a_file_that_is_no_yaml(tmp_path: Path, load: Any, line: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(f"first: 1\n{line}\n")
    with pytest.raises(ConfigError, match=r"line [23]") as refusal:
        load(file)
    assert SECRET not in str(refusal.value)
