"""The node file: its values, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from medopt.core.errors import ConfigError
from medopt.pacs.settings import AcceptedSender, NodeSettings, load_node_settings

NODE: dict[str, Any] = {
    "aet": "MEDOPT",
    "release": "release",
    "spool": "/var/spool/medopt",
    "accept": [{"aet": "PACS", "addresses": ["10.1.2.3", "10.4.0.0/16"]}],
    "destinations": [{"aet": "PACS", "host": "pacs.example", "port": 104}],
}


def write_node_file(folder: Path, **changes: Any) -> Path:
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(NODE | changes))
    return path


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    tls = {"certificate": "own.pem", "key": "/etc/own.key", "authority": "all.pem"}
    node = load_node_settings(write_node_file(tmp_path, tls=tls))
    assert (node.release, node.spool) == (tmp_path / "release", Path("/var/spool/medopt"))
    assert node.tls is not None
    assert (node.tls.certificate, node.tls.key) == (tmp_path / "own.pem", Path("/etc/own.key"))
    assert node.destinations[0].name == "PACS@pacs.example:104"
    assert (node.quiet_seconds, node.late_images, node.limits.associations) == (60, "new_result", 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quiet": 5}, "unknown key quiet: did you mean quiet_seconds?"),
        ({"sending": {"trys": 5}}, "unknown key sending.trys: did you mean tries?"),
        ({"accept": [{"aet": "A", "adresses": ["10.0.0.1"]}]}, "unknown key accept.0.adresses: did you mean addresses"),
        ({"series": {"modalities": ["CR"]}}, "unknown key series.modalities: did you mean modality?"),
        ({"aet": "MUCH_TOO_LONG_TITLE"}, "aet: an AE title has 1 to 16"),
        ({"aet": "A\\B"}, "no backslash"),
        ({"accept": []}, "accept: List should have at least 1 item"),
        ({"accept": [{"aet": "A", "addresses": ["pacs.example"]}]}, "an IP address or a network"),
        ({"port": 70000}, "port: Input should be less than or equal to 65535"),
        ({"late_images": "drop"}, "late_images: Input should be 'new_result' or 'refuse'"),
        ({"destinations": NODE["destinations"] * 2}, "a destination is listed twice"),
        ({"destinations": [NODE["destinations"][0] | {"tls": True}]}, "needs the node's section tls"),
    ],
)
def test_refused_with_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_node_settings(write_node_file(tmp_path, **changes))
    assert message in str(refusal.value)
    assert "node.yaml" in str(refusal.value)


def test_no_node_file(tmp_path: Path) -> None:
    write_node_file(tmp_path)
    with pytest.raises(ConfigError, match=r"There is no node file .*other.yaml. Node files beside it: .*node.yaml"):
        load_node_settings(tmp_path / "other.yaml")


def test_addresses_are_networks_too() -> None:
    sender = AcceptedSender.model_validate(NODE["accept"][0])
    accepted = {
        address: sender.has_address(address)
        for address in ("10.1.2.3", "10.1.2.4", "10.4.9.9", "::ffff:10.4.9.9", "::1")
    }
    assert accepted == {"10.1.2.3": True, "10.1.2.4": False, "10.4.9.9": True, "::ffff:10.4.9.9": True, "::1": False}


def test_keys_have_descriptions() -> None:
    with pytest.raises(ValidationError):
        NodeSettings.model_validate({})
    assert NodeSettings.model_fields["quiet_seconds"].description
