#!/usr/bin/env bash
# Takes the pictures of the help pages anew; arguments go to picture_nodes.py.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/runtime.sh"
find_runtime --tests

exec "$PYTHON" "$here/picture_nodes.py" --comfyui "$COMFYUI" "$@"
