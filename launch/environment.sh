# make_environment EXTRAS: create .venv and install the checkout with EXTRAS. Sourced by scripts for a fresh machine.

make_environment() {
    local python=${PYTHON:-python3} extras=$1 wanted
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $("$python" --version) found, Python 3.11 or newer is needed (set PYTHON to choose one)" >&2
        return 1
    }
    # A stamp file records what is installed: the same extras of the same setup.py are not installed twice.
    wanted="$extras $(cksum < setup.py)"
    if [ "$(cat ".venv/installed-$extras" 2> /dev/null)" != "$wanted" ]; then
        echo "== installing into .venv (extras: $extras)"
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        # Python compiles a module when it is first imported, and keeps the result: most modules are never imported.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]"
        echo "$wanted" > ".venv/installed-$extras"
    fi
}
