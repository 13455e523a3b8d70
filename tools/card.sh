#!/usr/bin/env bash
# Measures this machine's NVIDIA card with random weights; arguments go to benchmarks/card (--help lists them).
# PYTHON names the Python to use, else the first that has PyTorch.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

choose_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$candidate" ] && "$candidate" -c 'import torch' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python with PyTorch found: name ComfyUI's own in the environment variable PYTHON." >&2
    return 1
}

python=$(choose_python)
export PYTHONPATH="$repository/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
exec "$python" -m card "$@"
