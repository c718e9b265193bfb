#!/usr/bin/env bash
# Runs the linter and the tests in an environment of their own: bash tests/run.sh [--slow] [pytest arguments]
# --slow adds the tests that take minutes each. Needs Python 3.11 or newer, pip, and on the first run a package index.
# One worker per core; compiled programs are kept in ~/.cache/vlm_jax/tests between runs.
set -euo pipefail
cd "$(dirname "$0")/.."

. launch/environment.sh
make_environment test

echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "== pytest $*"
.venv/bin/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder "$@"
