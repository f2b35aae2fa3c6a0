"""The registry: which version of a study's release is the candidate, the champion and the one before, and why."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from medopt.core.errors import ConfigError, ReleaseRefused
from medopt.tracking.errors import answering
from medopt.tracking.store import open_store

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
GATE, MODEL, PASSED, OVERRIDDEN = "gate", "model verdict", "passed", "overridden"
_WHO = ("promoted_by", "promoted_at", "promoted_because", "compared_with_champion")
PLAN, TRIAL = "change_plan", "shadow_trial"
_HISTORY = "promotions"  # of this version, the first above: the other tags tell of the last


@dataclass(frozen=True, slots=True)
class Listed:
    """One version of a registered model, for people."""

    version: str
    aliases: tuple[str, ...]
    created: datetime
    gate: str
    model: str
    """The verdict on the model itself; empty where it is not known."""
    run_id: str
    promoted: str
    """Who promoted it, when and why; empty where nobody did."""


class Registry:
    """The registered models of a store."""

    def __init__(self, runs: Path) -> None:
        self.uri = open_store(runs)
        self._client = MlflowClient(self.uri, self.uri)

    def versions(self, name: str) -> list[Listed]:
        """All versions of a model, the newest first. Raises ConfigError where there is no such model."""
        with answering(self.uri):
            found = self._client.search_model_versions(f"name = '{name}'")
            aliases = self._aliases(name) if found else {}
        if not found:
            raise ConfigError(
                f"The registry has no model {name!r}. A model is registered under its study's name when a run ends "
                "with a release; look at `medopt ui`."
            )
        listed = []
        for one in sorted(found, key=lambda one: -int(one.version)):
            own = tuple(sorted(alias for alias, version in aliases.items() if version == str(one.version)))
            tags = one.tags
            told = f"{tags[_WHO[0]]}, {tags[_WHO[1]]}: {tags[_WHO[2]]}" if _WHO[0] in tags else ""
            created = datetime.fromtimestamp(one.creation_timestamp / 1000, UTC)
            listed.append(
                Listed(str(one.version), own, created, tags.get(GATE, ""), tags.get(MODEL, ""), one.run_id or "", told)
            )
        return listed

    def champion(self, name: str) -> str | None:
        """The version that serves, if any."""
        with answering(self.uri):
            return self._aliases(name).get(CHAMPION)

    def passed(self, name: str, version: str) -> ModelVersion:
        """A version that may be promoted. Raises ConfigError where there is none, ReleaseRefused for the others."""
        with answering(self.uri):
            known = {str(one.version): one for one in self._client.search_model_versions(f"name = '{name}'")}
        if version not in known:
            raise ConfigError(f"The model {name!r} has no version {version}; it has {', '.join(known) or 'none'}.")
        found = known[version]
        if (gate := found.tags.get(GATE)) != PASSED:
            raise ReleaseRefused(
                f"Version {version} of {name} did not pass the gate ({gate or 'nothing is known of it'}). Only what "
                "passed can become the champion: train or compress anew."
            )
        if (model := found.tags.get(MODEL, "")).startswith(OVERRIDDEN):  # versions of 0.1.0 have no such tag
            raise ReleaseRefused(
                f"Version {version} of {name} was released by name ({model}). Only what is shown to be better than "
                "chance can become the champion: train anew."
            )
        return found

    def version_of(self, name: str, alias: str) -> str:
        """The version that an alias names; raises ConfigError where there is none."""
        with answering(self.uri):
            aliases = self._aliases(name)
        if alias not in aliases:
            raise ConfigError(f"The model {name!r} has no {alias}; its aliases: {aliases or 'none'}.")
        return aliases[alias]

    def run_of(self, name: str, version: str) -> str:
        """The run that a version came from."""
        with answering(self.uri):
            return self._client.get_model_version(name, version).run_id or ""

    def plan_of(self, name: str, version: str) -> str:
        """The SHA-256 of the change plan that a version was promoted by; "" for none."""
        with answering(self.uri):
            return str(self._client.get_model_version(name, version).tags.get(PLAN, ""))

    def note_plan(self, name: str, version: str, digest: str) -> None:
        """Write down by which change plan a version is promoted."""
        with answering(self.uri):
            self._client.set_model_version_tag(name, version, PLAN, digest)

    def note_trial(self, name: str, version: str, figures: str) -> None:
        """Write down the figures of the shadow trial that a version is promoted after."""
        with answering(self.uri):
            self._client.set_model_version_tag(name, version, TRIAL, figures[:5000])

    def tables(self, run_id: str, folder: Path) -> Path:
        """What a comparison needs of a run: its predictions and its study, in a folder of their own."""
        folder.mkdir(parents=True)
        with answering(self.uri):
            for name in ("tables/predictions.csv", "study.yaml"):
                got = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=self.uri)
                (folder / Path(name).name).write_bytes(Path(got).read_bytes())
        return folder

    def promote(self, name: str, version: str, reason: str, compared: str) -> str | None:
        """Make a version the champion; the one until now is `previous`. Returns that one.

        `compared` is the comparison with that one, in words or as JSON. Who, when, why and the comparison are written
        before an alias moves.
        """
        values = (who(), datetime.now(UTC).isoformat(timespec="seconds"), reason, compared[:5000])
        with answering(self.uri):
            earlier = self._client.get_model_version(name, version).tags.get(_HISTORY, "")
            history = f"{earlier}\n{values[1]} {values[0]}: {reason}".strip()[-5000:]
            for key, value in (*zip(_WHO, values, strict=True), (_HISTORY, history)):
                self._client.set_model_version_tag(name, version, key, value)
            aliases = self._aliases(name)
            before = aliases.get(CHAMPION)
            if before is not None and before != version:
                self._client.set_registered_model_alias(name, PREVIOUS, before)
            self._client.set_registered_model_alias(name, CHAMPION, version)
            if aliases.get(CANDIDATE) == version:
                self._client.delete_registered_model_alias(name, CANDIDATE)
        return before

    def roll_back(self, name: str, reason: str) -> tuple[str, str]:
        """The champion and the one before change places; returns (champion now, champion until now)."""
        with answering(self.uri):
            aliases = self._aliases(name)
        champion, before = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None or before is None:
            raise ConfigError(f"{name} has no previous champion to go back to; its aliases: {aliases or 'none'}.")
        self.promote(name, before, reason, f"rolled back from version {champion}")
        return before, champion

    def _aliases(self, name: str) -> dict[str, str]:
        return {alias: str(version) for alias, version in self._client.get_registered_model(name).aliases.items()}


def who() -> str:
    """The user of MLflow's server where one is named, else of this machine."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or f"{getpass.getuser()}@{socket.gethostname()}"
