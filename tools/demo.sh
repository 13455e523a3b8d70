#!/usr/bin/env bash
# Makes one clip with its sound in a real ComfyUI server and judges it; arguments go to demo.py (--help lists them).
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/runtime.sh"
find_runtime

exec "$PYTHON" "$here/demo.py" --comfyui "$COMFYUI" "$@"
