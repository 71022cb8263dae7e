#!/usr/bin/env bash
# Table 4 of the paper, GLUE: BERT-base to its first 6 layers. Of its tasks RTE alone, the one that stands in
# tasks.TASKS too.
#   scripts/table_4.sh DATA_DIR [--go] [flags ...]             (table.sh says what flags may be given)
#   python3 scripts/make_tables.py runs/table_4 --table 4
exec bash "$(dirname "$0")/table.sh" 4 "--tasks RTE --teacher_model bert-base-uncased --nlayers 6" "$@"
