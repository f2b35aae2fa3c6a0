#!/usr/bin/env bash
# MLflow's server from its settings in the environment: what systemd and the container run.
#
# Wanted: PGHOST, PGUSER, PGPASSFILE, MEDOPT_DATABASE, MEDOPT_AUTH_DATABASE, MEDOPT_ARTIFACTS (a folder or s3://...), HOSTS
# (names by which it is called, with commas) and files ADMIN_PASSWORD_FILE, SESSION_KEY_FILE. LISTEN, PORT, WORKERS.
set -euo pipefail
umask 077
settings=$(mktemp)
cat >"$settings" <<END
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg://$PGUSER@/$MEDOPT_AUTH_DATABASE?host=$PGHOST
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
END
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$ADMIN_PASSWORD_FILE")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$SESSION_KEY_FILE")
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH=$settings
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # its job runners take 2 GB, and a reviewer has no use for them
unset MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
exec "${PYTHON:-python3}" -m mlflow server --app-name basic-auth --host "${LISTEN:-127.0.0.1}" --port "${PORT:-5000}" \
    --workers "${WORKERS:-1}" --backend-store-uri "postgresql+psycopg://$PGUSER@/$MEDOPT_DATABASE?host=$PGHOST" \
    --artifacts-destination "$MEDOPT_ARTIFACTS" \
    ${HOSTS:+--allowed-hosts "$HOSTS" --cors-allowed-origins "https://${HOSTS//,/,https://}"}
