#!/usr/bin/env bash
# Table 4 of the paper, GLUE: BERT-base to its first 6 layers, eight tasks, eleven rows and the controls, five seeds.
# An episode passes over a tenth of train, which is 4,909 steps on MNLI: --quiz_size N caps it, and the table says so.
#   scripts/table_4.sh DATA_DIR [--go] [flags ...]             (table.sh says what flags may be given)
#   python3 scripts/make_tables.py runs/table_4 --table 4
exec bash "$(dirname "$0")/table.sh" 4 "--tasks MNLI MRPC QNLI QQP RTE SST-2 STS-B WNLI \
  --teacher_model bert-base-uncased --nlayers 6" "$@"
