#!/usr/bin/env bash
# Installs MLServer, a real Open Inference Protocol server, into .venv-oip: it can't share an environment with intaglio,
# whose other dependencies want newer versions than it allows. Does nothing when that is done already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/../../.venv-oip"
python=${PYTHON:-python3}

if cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    exit 0
fi
rm -rf "$venv"
"$python" -m venv "$venv"
echo '*' >"$venv/.gitignore"
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps -r "$here/requirements.txt"
"$venv/bin/pip" check >/dev/null
cp "$here/requirements.txt" "$venv/installed.txt"
