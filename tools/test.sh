#!/usr/bin/env bash
# Checks style and runs every test in a real ComfyUI; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/runtime.sh
find_runtime --tests

"$PYTHON" tools/browser.py || true  # says why when there is no browser to be had

# The tensors of the tests are small: threads would wait for one another longer than they work.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
COMFYUI_PATH="$COMFYUI" exec "$PYTHON" -m pytest "$@"
