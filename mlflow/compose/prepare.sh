#!/usr/bin/env bash
# What compose.yaml needs before its first start: mlflow/compose/prepare.sh mlflow.example.org
#
# Passwords into secrets/ (readable by you and by the server's user 10001), nginx.conf with the name, and in tls/ a
# certificate of its own making where none was put there. What is there already stays.
set -euo pipefail
name=${1:?usage: mlflow/compose/prepare.sh NAME}
cd "$(dirname "$0")"
mkdir -p secrets tls backups
chmod 700 secrets tls
for secret in database_password admin_password session_key; do
    [ -s "secrets/$secret" ] || (umask 077 && openssl rand -base64 24 | tr '+/' '-_' >"secrets/$secret")
done
(umask 077 && echo "*:*:*:mlflow:$(cat secrets/database_password)" >secrets/pgpass)
if [ "$(id -u)" = 0 ]; then # compose hands files over with the owner they have; libpq wants 0600
    chown 10001 secrets/admin_password secrets/session_key secrets/pgpass backups
fi
sed -e "s/mlflow\.example\.org/$name/" -e 's/server 127\.0\.0\.1:5000;.*/server server:5000;/' ../nginx.conf >nginx.conf
[ -s tls/fullchain.pem ] || openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=$name" \
    -addext "subjectAltName=DNS:$name" -keyout tls/privkey.pem -out tls/fullchain.pem 2>/dev/null
echo "NAME=$name" >.env
echo "Sign in at https://$name as admin with $PWD/secrets/admin_password"
