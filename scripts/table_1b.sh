#!/usr/bin/env bash
# Table 1b of the paper: DeBERTa-v2-xxlarge to its first 12 layers, six SuperGLUE tasks, eleven rows and the controls, five seeds.
#   scripts/table_1b.sh DATA_DIR [flags of sweep.py and main_superglue.py ...]
# Prints the commands; --go runs them, and the same line goes on after an interruption. Flags given replace these: another encoder
# (--teacher_model), --seeds, --tasks, --rows, --jobs, --output_dir. Then:
#   python scripts/make_tables.py runs/table_1b --table 1b
set -euo pipefail
if [[ $# -lt 1 ]]; then
  echo "usage: $0 DATA_DIR [flags of sweep.py and main_superglue.py ...]" >&2
  exit 2
fi
data=$1
shift
exec python "$(dirname "$0")/sweep.py" --data_dir "$data" --seeds 42 43 44 45 46 --output_dir runs/table_1b \
  --teacher_model microsoft/deberta-v2-xxlarge --nlayers 12 "$@"
