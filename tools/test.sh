#!/usr/bin/env bash
# Checks style and runs every test in a real ComfyUI; arguments go to pytest, -n 0 for one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/runtime.sh
find_runtime --tests

"$PYTHON" tools/browser.py || true  # says why when there is no browser to be had

# The tensors of the tests are small: threads would wait for one another longer than they work.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .

# One worker more than there are cores, since the browser's tests mostly wait; each has a ComfyUI of
# its own, about 1 GB. A file's tests stay together, since they share what they load. Folders come in
# their order: the browser's, the longest, begin first.
workers=$("$PYTHON" -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
export PYTEST_XDIST_AUTO_NUM_WORKERS="${PYTEST_XDIST_AUTO_NUM_WORKERS:-$workers}"
COMFYUI_PATH="$COMFYUI" exec "$PYTHON" -m pytest \
  -n auto --dist loadfile --no-loadscope-reorder "$@"
