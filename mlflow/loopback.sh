#!/usr/bin/env bash
# A team's server on this machine's loopback address, for trying and for the tests: mlflow/loopback.sh FOLDER [PORT]
#
# Debian's PostgreSQL in FOLDER (a cluster of its own, reached by a Unix socket only), MLflow before it with sign-in,
# artifacts through the server, job runners off. All passwords are made here and kept in FOLDER/secrets. Ctrl-C stops
# all of it; the same command goes on with what is in FOLDER. DATABASE_ONLY=1 starts PostgreSQL alone, for restore.sh.
set -euo pipefail
fail() { echo "$*" >&2; exit 2; }
store=${1:?usage: mlflow/loopback.sh FOLDER [PORT]}
port=${2:-5000}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd -P)
umask 077
mkdir -p "$store"
store=$(cd "$store" && pwd -P)
secrets=$store/secrets socket=$store/socket cluster=$store/postgres
[ ${#socket} -le 90 ] || fail "The path $store is too long for a Unix socket; choose a folder with a shorter one."

binaries=${POSTGRES_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)}
[ -x "$binaries/initdb" ] || fail "PostgreSQL is not installed: apt-get install postgresql (or name its folder: POSTGRES_BIN)."
"$python" -c 'import psycopg, flask_wtf; from importlib.metadata import version; version("mlflow")' 2>/dev/null ||
    fail "The server's packages are missing: pip install 'medopt[train,mlflow-server]'."
exec 9>"$store/.lock"
flock -n 9 || fail "Another server runs in $store."
answers() { (exec 8<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
answers && fail "Port $port is taken; name another one: $0 $store PORT."

# PostgreSQL refuses to run as root, and should.
as=()
if [ "$(id -u)" = 0 ]; then
    id postgres >/dev/null 2>&1 || fail "As root, a user named postgres is needed to run the database."
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
    chmod 711 "$store"
    "${as[@]}" test -x "$store" || fail "The user postgres cannot enter $store: choose a folder below /var/lib or /srv."
fi
owned() { mkdir -p "$1" && chmod 700 "$1" && { [ ${#as[@]} = 0 ] || chown postgres "$1"; }; }
made() { [ -s "$secrets/$1" ] || "$python" -c 'import secrets; print(secrets.token_urlsafe(24))' >"$secrets/$1"; }

mkdir -p "$secrets" "$store/artifacts"
made admin_password
made database_password
made session_key
echo "*:*:*:mlflow:$(cat "$secrets/database_password")" >"$secrets/pgpass"
owned "$cluster"
owned "$socket"
if [ ! -s "$cluster/PG_VERSION" ]; then
    cp "$secrets/database_password" "$socket/first" # where the database's user may read it, for as long as this takes
    [ ${#as[@]} = 0 ] || chown postgres "$socket/first"
    "${as[@]}" "$binaries/initdb" --pgdata="$cluster" --username=mlflow --auth=scram-sha-256 --encoding=UTF8 \
        --locale=C.UTF-8 --pwfile="$socket/first" >"$store/initdb.log" 2>&1 ||
        { tail -5 "$store/initdb.log" >&2; rm -rf "$cluster" "$socket"; fail "PostgreSQL's folder could not be made."; }
    rm -f "$socket/first"
fi

server=
stop() {
    trap - EXIT INT TERM
    [ -z "$server" ] || kill -TERM -- "-$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    "${as[@]}" "$binaries/pg_ctl" stop --pgdata="$cluster" --mode=fast --wait >/dev/null 2>&1 || true
}
trap stop EXIT
trap 'stop; exit 0' INT TERM
settings="-c listen_addresses='' -c unix_socket_directories='$socket' -c shared_buffers=64MB -c max_connections=40"
if ! "${as[@]}" "$binaries/pg_ctl" status --pgdata="$cluster" >/dev/null 2>&1; then # else left by one that was killed
    "${as[@]}" "$binaries/pg_ctl" start --pgdata="$cluster" --wait --timeout=60 --log="$cluster/postgres.log" \
        --options="$settings" >/dev/null 9>&- || { tail -5 "$cluster/postgres.log" >&2; fail "PostgreSQL did not start."; }
fi

cat >"$store/server.env" <<END
PGHOST=$socket
PGUSER=mlflow
PGPASSFILE=$secrets/pgpass
MEDOPT_DATABASE=mlflow
MEDOPT_AUTH_DATABASE=mlflow_auth
MEDOPT_ARTIFACTS=$store/artifacts
END
set -a; . "$store/server.env"; set +a
for name in "$MEDOPT_DATABASE" "$MEDOPT_AUTH_DATABASE"; do
    "$binaries/psql" -d postgres -tAqc "select 1 from pg_database where datname = '$name'" | grep -q 1 ||
        "$binaries/createdb" "$name"
done
if [ -n "${DATABASE_ONLY:-}" ]; then
    echo "PostgreSQL runs in $cluster; $store/server.env says how to reach it. Ctrl-C stops it."
    setsid sleep infinity 9>&- &
    server=$!
    wait "$server"
fi
ADMIN_PASSWORD_FILE=$secrets/admin_password SESSION_KEY_FILE=$secrets/session_key HOSTS= LISTEN=127.0.0.1 PORT=$port \
    PYTHON=$python setsid "$here/serve.sh" >>"$store/server.log" 2>&1 9>&- &
server=$!
until answers; do
    kill -0 "$server" 2>/dev/null || { tail -5 "$store/server.log" >&2; fail "MLflow's server did not start; see $store/server.log."; }
    sleep 0.2
done
cat <<END
MLflow listens at http://127.0.0.1:$port/?workflowType=machine_learning (PostgreSQL in $cluster)
user admin, password in $secrets/admin_password; in the shell that is to track here:

    export MLFLOW_TRACKING_URI=http://127.0.0.1:$port
    export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD="\$(cat $secrets/admin_password)"

Ctrl-C stops both.
END
wait "$server" || { tail -5 "$store/server.log" >&2; fail "MLflow's server ended; see $store/server.log."; }
