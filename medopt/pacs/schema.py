"""The ledger's tables, one step a version: an older file is migrated in one transaction and keeps its content."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from medopt.core.errors import ConfigError

_SERVED = """SELECT {0}.id, {0}.release, {0}.at, coalesce(json_extract(value, '$.decision'), ''),
    coalesce(json_extract(value, '$.declined'), '') != '', {0}.at - (SELECT max(received) FROM instances
    WHERE study_uid = {0}.study_uid AND image AND received <= {0}.at)"""
"""The columns of `served`: `waited` is from the last image of the study to its answer, in seconds."""
_SCANS = "CASE WHEN json_valid({0}.record) THEN {0}.record ELSE '{{}}' END"

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE studies (
            uid TEXT PRIMARY KEY,
            state TEXT NOT NULL CHECK (state IN ('receiving', 'ready', 'working', 'done', 'declined', 'parked')),
            tries INTEGER NOT NULL DEFAULT 0,
            reason TEXT NOT NULL DEFAULT '',
            changed REAL NOT NULL)""",
        """CREATE TABLE instances (
            sop_uid TEXT PRIMARY KEY,
            study_uid TEXT NOT NULL REFERENCES studies,
            sop_class TEXT NOT NULL,
            transfer_syntax TEXT NOT NULL,
            digest TEXT NOT NULL,
            size INTEGER NOT NULL,
            file TEXT NOT NULL UNIQUE,
            image INTEGER NOT NULL,
            received REAL NOT NULL)""",
        """CREATE TABLE results (
            sop_uid TEXT PRIMARY KEY,
            study_uid TEXT NOT NULL REFERENCES studies,
            sop_class TEXT NOT NULL,
            kind TEXT NOT NULL,
            file TEXT NOT NULL UNIQUE,
            digest TEXT NOT NULL,
            made REAL NOT NULL)""",
        """CREATE TABLE sends (
            sop_uid TEXT NOT NULL REFERENCES results,
            destination TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'parked')),
            attempts INTEGER NOT NULL DEFAULT 0,
            due REAL NOT NULL,
            reason TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (sop_uid, destination))""",
    ),
    (  # without these indexes every query of a study reads the whole table
        "CREATE INDEX instances_of ON instances (study_uid)",
        "CREATE INDEX results_of ON results (study_uid)",
        "CREATE INDEX studies_in ON studies (state)",
        "CREATE INDEX sends_in ON sends (state, due)",
    ),
    (  # retention: emptied is 0 while the files are there, 1 while they are being removed, 2 afterwards
        "ALTER TABLE studies ADD COLUMN emptied INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE results ADD COLUMN series_uid TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE results ADD COLUMN size INTEGER NOT NULL DEFAULT 0",
    ),
    (  # what each release answered; patient and accession number are pseudonyms, `record` is a StudyRecord
        """CREATE TABLE answers (
            id INTEGER PRIMARY KEY,
            study_uid TEXT NOT NULL REFERENCES studies,
            release TEXT NOT NULL,
            patient TEXT NOT NULL,
            accession TEXT NOT NULL,
            images INTEGER NOT NULL,
            record TEXT NOT NULL,
            at REAL NOT NULL)""",
        "CREATE INDEX answers_of ON answers (study_uid)",
        """CREATE TABLE trials (
            answer INTEGER PRIMARY KEY REFERENCES answers,
            candidate TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('waiting', 'compared', 'failed', 'skipped')),
            tries INTEGER NOT NULL DEFAULT 0,
            reason TEXT NOT NULL DEFAULT '',
            record TEXT NOT NULL DEFAULT '',
            at REAL NOT NULL)""",
        "CREATE INDEX trials_in ON trials (state)",
        """CREATE TABLE labels (
            id INTEGER PRIMARY KEY,
            study_uid TEXT NOT NULL REFERENCES studies,
            scan TEXT NOT NULL,
            truth TEXT NOT NULL,
            source TEXT NOT NULL,
            at REAL NOT NULL)""",
        "CREATE INDEX labels_of ON labels (study_uid)",
    ),
    (  # for the monitoring page and alerts: each scan of the last answer of a study, without who it is
        """CREATE TABLE served (
            answer INTEGER NOT NULL REFERENCES answers,
            release TEXT NOT NULL,
            at REAL NOT NULL,
            decision TEXT NOT NULL,
            declined INTEGER NOT NULL,
            waited REAL)""",
        "CREATE INDEX served_by ON served (release, at, answer, decision, declined, waited)",
        "CREATE INDEX served_of ON served (answer)",
        f"INSERT INTO served {_SERVED.format('one')} FROM answers AS one, json_each({_SCANS.format('one')}, '$.scans') "
        "WHERE NOT EXISTS (SELECT 1 FROM answers AS later WHERE later.study_uid = one.study_uid AND later.release = "
        "one.release AND later.id > one.id)",
        f"""CREATE TRIGGER serve AFTER INSERT ON answers BEGIN
            DELETE FROM served WHERE answer IN (SELECT id FROM answers WHERE study_uid = new.study_uid
                AND release = new.release AND id < new.id);
            INSERT INTO served {_SERVED.format("new")} FROM json_each({_SCANS.format("new")}, '$.scans');
        END""",
        """CREATE TABLE alerts (
            name TEXT PRIMARY KEY,
            since REAL NOT NULL)""",
        """CREATE TABLE alert_sends (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            channel TEXT NOT NULL,
            message TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            due REAL NOT NULL)""",
    ),
)
"""What each version adds. A step that was released is never changed."""


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Migrate a file to the newest version, inside the caller's transaction; raises ConfigError for a newer file."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(STEPS):
        raise ConfigError(
            f"The ledger {path} is of version {version}, and this medopt knows up to {len(STEPS)}. Use the medopt that "
            "wrote it, or a newer one."
        )
    for step in STEPS[version:]:
        for statement in step:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(STEPS)}")
