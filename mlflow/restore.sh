#!/usr/bin/env bash
# Put a backup in the place of what a server holds: mlflow/restore.sh SERVER.ENV BACKUP
#
# MLflow has to be stopped, PostgreSQL has to run. Every file is checked first. The backup is read into databases and a
# folder of their own, which then change names with the present ones: what was there stays as *_before_DATE until
# somebody removes it, and a restore that fails half-way changes nothing.
set -euo pipefail
fail() { echo "$*" >&2; exit 2; }
[ $# = 2 ] || fail "usage: mlflow/restore.sh SERVER.ENV BACKUP"
set -a; . "$1"; set +a
backup=$(cd "$2" && pwd -P)
(cd "$backup" && sha256sum --quiet --check SHA256SUMS) || fail "$backup is not what was backed up; take another one."
databases=("$MEDOPT_DATABASE" "$MEDOPT_AUTH_DATABASE")
moment=before_$(date -u +%Y%m%d_%H%M%S)
run() { psql -v ON_ERROR_STOP=1 -d postgres -tAqc "$1"; }
for database in "${databases[@]}"; do
    [ "$(run "select count(*) from pg_stat_activity where datname = '$database'")" = 0 ] ||
        fail "Somebody is connected to $database: stop MLflow's server first."
done
fresh=$MEDOPT_ARTIFACTS.new
clean() { rm -rf "$fresh"; for database in "${databases[@]}"; do dropdb --if-exists "${database}_new" 2>/dev/null; done; }
trap clean EXIT
clean
for database in "${databases[@]}"; do
    createdb "${database}_new"
    pg_restore --exit-on-error --single-transaction --no-owner --dbname="${database}_new" "$backup/$database.dump"
done
[ ! -d "$backup/artifacts" ] || cp -a "$backup/artifacts" "$fresh"
for database in "${databases[@]}"; do # one transaction: both or none
    [ "$(run "select count(*) from pg_database where datname = '$database'")" = 0 ] ||
        renames+="alter database $database rename to ${database}_$moment;"
    renames="${renames:-}alter database ${database}_new rename to $database;"
done
run "begin; $renames commit;"
if [ -d "$fresh" ]; then
    [ ! -e "$MEDOPT_ARTIFACTS" ] || mv "$MEDOPT_ARTIFACTS" "$MEDOPT_ARTIFACTS.$moment"
    mv "$fresh" "$MEDOPT_ARTIFACTS"
fi
trap - EXIT
echo "Restored $backup. What was there: databases *_$moment, $MEDOPT_ARTIFACTS.$moment (remove them when all is well)."
