#!/usr/bin/env bash
# Rewrites workflows/api/ from workflows/ with ComfyUI's own page; arguments go to export_workflows.py.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/runtime.sh"
find_runtime --tests

exec "$PYTHON" "$here/export_workflows.py" --comfyui "$COMFYUI" "$@"
