#!/usr/bin/env bash
# Checks style and runs every test in a real ComfyUI; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/runtime.sh
find_runtime --tests

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
COMFYUI_PATH="$COMFYUI" exec "$PYTHON" -m pytest "$@"
