#!/usr/bin/env bash
# Everything a team's server holds, in one folder: mlflow/backup.sh SERVER.ENV FOLDER
#
# Runs, registry and users (pg_dump of both databases, each a snapshot) first, then the artifacts: a run that is
# logged meanwhile is left out of the dump, and nothing in the dump lacks its files. The server goes on. The new folder
# gets its name when it is whole and checked; files that an earlier backup beside it has, too, take no space again.
set -euo pipefail
fail() { echo "$*" >&2; exit 2; }
[ $# = 2 ] || fail "usage: mlflow/backup.sh SERVER.ENV FOLDER"
set -a; . "$1"; set +a
umask 077
mkdir -p "$2"
target=$(cd "$2" && pwd -P)
exec 9>"$target/.lock"
flock -n 9 || fail "Another backup into $target is under way."
rm -rf "$target"/.*.part
name=mlflow-$(date -u +%Y%m%dT%H%M%SZ)
part=$target/.$name.part
last=$(find "$target" -maxdepth 1 -name 'mlflow-*' -type d | sort | tail -1)
trap 'rm -rf "$part"' EXIT
mkdir "$part"
for database in "$MEDOPT_DATABASE" "$MEDOPT_AUTH_DATABASE"; do
    pg_dump --format=custom --no-owner --file="$part/$database.dump" "$database"
    [ "$(pg_restore --list "$part/$database.dump" | grep -c 'TABLE DATA')" -gt 0 ] || fail "The dump of $database holds no tables."
done
if [[ $MEDOPT_ARTIFACTS == *://* ]]; then
    echo "artifacts are in $MEDOPT_ARTIFACTS: keep the bucket's own versions; they are not copied"
elif command -v rsync >/dev/null; then
    rsync --archive ${last:+--link-dest="$last/artifacts"} "$MEDOPT_ARTIFACTS/" "$part/artifacts/"
else
    cp -a "$MEDOPT_ARTIFACTS" "$part/artifacts"
fi
psql -d "$MEDOPT_DATABASE" -tAqc 'select version_num from alembic_version' >"$part/schema"
(cd "$part" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
sync -f "$part/SHA256SUMS"
mv "$part" "$target/$name"
trap - EXIT
echo "$target/$name: $(wc -l <"$target/$name/SHA256SUMS") files, $(du -sh "$target/$name" | cut -f1)"
