#!/usr/bin/env bash
# Makes what the compose files keep secret, in deploy/compose/secrets: a CA and a certificate, tokens, a password.
# Run as root, who alone can give a file to a container's user: sudo deploy/compose/secrets.sh [a host name ...]
# Again: it renews the certificate, and leaves tokens and password as they are.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
halfreel=${HALFREEL:-$root/.venv/bin/halfreel}
[ -x "$halfreel" ] || { echo "secrets.sh: $halfreel is not there; run make demo once, or set HALFREEL" >&2; exit 1; }

umask 077
mkdir -p secrets
cd secrets

hosts=(gateway llm video localhost 127.0.0.1 "$@")
"$halfreel" certs . "${hosts[@]/#/--host=}"

if [ ! -e tokens-models.json ]; then
  forever=(--expires never)
  "$halfreel" tokens add --file tokens-gateway.json --name prometheus --scopes read "${forever[@]}" --output metrics-token
  # Prometheus shows one token to all three, so both files know it.
  cp tokens-gateway.json tokens-models.json
  "$halfreel" tokens add --file tokens-models.json --name gateway --scopes generate,read "${forever[@]}" \
    --output model-token
  "$halfreel" tokens add --file tokens-gateway.json --name "${SUDO_USER:-operator}" --scopes generate,read,admin \
    --output client-token
fi
[ -e grafana-password ] || head -c 24 /dev/urandom | base64 | tr -d '\n' > grafana-password

# The users inside: 10001 is Halfreel's, 65534 is Prometheus's; Grafana's is in the group 0.
chown root:10001 server-key.pem tokens-gateway.json tokens-models.json model-token
chown root:65534 metrics-token
chown root:0 grafana-password
chmod 0640 server-key.pem tokens-gateway.json tokens-models.json model-token metrics-token grafana-password
chmod 0644 ca.pem server.pem
# For the one who called, whose client asks for them; the folder itself tells nobody more.
chmod 0711 .
if [ -n "${SUDO_UID:-}" ]; then chown "$SUDO_UID" client-token; fi
