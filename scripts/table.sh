#!/usr/bin/env bash
# What the table_*.sh have in common: sweep.py with a table's encoder and tasks, five seeds, runs in
# runs/table_NAME.
#   scripts/table.sh NAME "FLAGS" DATA_DIR [flags of sweep.py and main_superglue.py ...]
# Prints the commands; --go runs them, and the same line goes on after an interruption. Flags given replace
# FLAGS and the others: another encoder (--teacher_model), --seeds, --tasks, --rows, --jobs, --output_dir; --rates
# with the records of tune.py; --cluster slurm (docs/CLUSTER.md).
# Uses $PYTHON, else python3.
set -euo pipefail
if [[ $# -lt 3 ]]; then
  echo "usage: scripts/table_${1:-NAME}.sh DATA_DIR [flags of sweep.py and main_superglue.py ...]" >&2
  exit 2
fi
name=$1 data=$3
read -ra flags <<< "$2"
shift 3
exec "${PYTHON:-python3}" "$(dirname "$0")/sweep.py" --data_dir "$data" --seeds 42 43 44 45 46 \
  --output_dir "runs/table_$name" "${flags[@]}" "$@"
