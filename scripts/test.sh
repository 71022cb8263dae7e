#!/usr/bin/env bash
# ruff and the test suite in an environment of their own (.venv-test), on two cores. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment .venv-test requirements.txt scripts/requirements.txt tests/requirements.txt
ruff check --quiet .
HF_HUB_OFFLINE=1 exec python -m pytest -n 2 "$@"
