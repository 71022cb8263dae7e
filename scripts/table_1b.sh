#!/usr/bin/env bash
# Table 1b of the paper: DeBERTa-v2-xxlarge to its first 12 layers, six SuperGLUE tasks, eleven rows and the
# controls, five seeds.
#   scripts/table_1b.sh DATA_DIR [--go] [flags ...]            (table.sh says what flags may be given)
#   python3 scripts/make_tables.py runs/table_1b --table 1b
exec bash "$(dirname "$0")/table.sh" 1b "--teacher_model microsoft/deberta-v2-xxlarge --nlayers 12" "$@"
