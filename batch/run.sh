#!/usr/bin/env bash
# Makes a table of clips, or a film: bash batch/run.sh jobs.csv --workflow W.json --out FOLDER (--help lists all).
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$repository/tools/runtime.sh"
find_runtime --batch

# Ray asks its makers for nothing, and tells them nothing.
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
export PYTHONPATH="$repository:$repository/tools"
exec "$BATCH_PYTHON" "$repository/batch/__main__.py" --python "$PYTHON" --comfyui "$COMFYUI" "$@"
