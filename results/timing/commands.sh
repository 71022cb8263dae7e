#!/usr/bin/env bash
# What made this folder, from the repository's root, at commit ca1dd43: data/ holds the official SuperGLUE and
# GLUE files, encoders/MiniLM comes from `scripts/get_encoder.sh MiniLM encoders/MiniLM`, peer/ has mpdistil
# 0.1.0. The machine had no other work. Its lines for tasks without files were errors then.
set -euo pipefail
PEER=peer/bin/python scripts/timing.sh data/superglue data/glue encoders/MiniLM results/timing \
  --rounds 3 --peer_epochs 1 --peer_episodes 4
