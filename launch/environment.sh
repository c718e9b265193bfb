# make_environment EXTRAS: create .venv and install the checkout with EXTRAS. Sourced by scripts for a fresh machine.

make_environment() {
    local python=${PYTHON:-python3} extras=$1 wanted
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $("$python" --version) found, Python 3.11 or newer is needed (set PYTHON to choose one)" >&2
        return 1
    }
    unset PYTHONDONTWRITEBYTECODE  # or each process would compile all that it imports
    # A stamp file records what is installed: the same extras of the same setup.py are not installed twice.
    wanted="$extras $(cksum < setup.py)"
    if [ "$(cat ".venv/installed-$extras" 2> /dev/null)" != "$wanted" ]; then
        echo "== installing into .venv (extras: $extras)"
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        # Most modules are never imported; Python compiles the others at their first import.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]"
        echo "$wanted" > ".venv/installed-$extras"
    fi
}
