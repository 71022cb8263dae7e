#!/usr/bin/env bash
# Table 1a of the paper: BERT-base to its first 6 layers, six SuperGLUE tasks, eleven rows and the controls, five seeds.
#   scripts/table_1a.sh DATA_DIR [flags of sweep.py and main_superglue.py ...]
# Prints the commands; --go runs them, and the same line goes on after an interruption. Flags given replace these: another encoder
# (--teacher_model), --seeds, --tasks, --rows, --jobs, --output_dir. Then:
#   python scripts/make_tables.py runs/table_1a --table 1a
set -euo pipefail
if [[ $# -lt 1 ]]; then
  echo "usage: $0 DATA_DIR [flags of sweep.py and main_superglue.py ...]" >&2
  exit 2
fi
data=$1
shift
exec python "$(dirname "$0")/sweep.py" --data_dir "$data" --seeds 42 43 44 45 46 --output_dir runs/table_1a \
  --teacher_model bert-base-uncased --nlayers 6 "$@"
