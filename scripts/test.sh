#!/usr/bin/env bash
# The test suite in an environment of its own (.venv-test), on two cores. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment .venv-test requirements.txt scripts/requirements.txt tests/requirements.txt
HF_HUB_OFFLINE=1 exec python -m pytest -n 2 "$@"
