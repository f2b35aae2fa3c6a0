#!/usr/bin/env bash
# MLflow's tracking server on loopback: mlflow/server.sh STORE_FOLDER [PORT]
set -euo pipefail
store=${1:?usage: mlflow/server.sh STORE_FOLDER [PORT]}
port=${2:-5000}
mkdir -p "$store/artifacts"
store=$(cd "$store" && pwd)
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
exec "${PYTHON:-python3}" -m mlflow server --host 127.0.0.1 --port "$port" --workers 1 \
    --backend-store-uri "${MLFLOW_BACKEND_STORE_URI:-sqlite:///$store/mlflow.db}" \
    --artifacts-destination "$store/artifacts"
