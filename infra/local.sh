#!/usr/bin/env bash
# The servers that jobs meet on a cluster, as plain processes of this machine: MLflow, S3 (SeaweedFS), a Ray head.
#
#   infra/local.sh start             # on free ports; data, logs and process ids in local/; --help for more
#   eval "$(infra/local.sh env)"     # what jobs need to know, for this terminal
#   infra/local.sh status
#   infra/local.sh stop              # ends exactly what start has started, and keeps the data
#
# Needs `.venv` (make) with the extra `server`: .venv/bin/pip install -c constraints.txt -e ".[server]"
# PYTHON names another interpreter. The work is done by infra/local_services.py.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
if ! "$python" -c 'import mlflow, ray' >/dev/null 2>&1; then
    echo "error: $python does not start, or has no MLflow and Ray; run make, or set PYTHON to an interpreter with both" >&2
    exit 1
fi
exec "$python" "$here/local_services.py" "$@"
