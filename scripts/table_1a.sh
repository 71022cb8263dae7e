#!/usr/bin/env bash
# Table 1a of the paper: BERT-base to its first 6 layers, six SuperGLUE tasks, eleven rows and the controls, five
# seeds.
#   scripts/table_1a.sh DATA_DIR [--go] [flags ...]            (table.sh says what flags may be given)
#   python3 scripts/make_tables.py runs/table_1a --table 1a
exec bash "$(dirname "$0")/table.sh" 1a "--teacher_model bert-base-uncased --nlayers 6" "$@"
