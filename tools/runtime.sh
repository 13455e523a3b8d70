# Sourced by test.sh and demo.sh.

choose_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.10 to 3.13 found: install Python 3.11 and make sure 'python3.11' or 'python3' runs it." >&2
    return 1
}

# Sets PYTHON and COMFYUI to a ComfyUI that runs; arguments go to runtime.py.
find_runtime() {
    local python lines
    python=$(choose_python)
    lines=$("$python" "$(dirname "${BASH_SOURCE[0]}")/runtime.py" "$@")
    eval "$lines"
}
