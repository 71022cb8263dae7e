#!/usr/bin/env bash
# The paper's loop: every task with both losses and both rewards, with the undistilled student and without a curriculum.
#   scripts/run_superglue.sh DATA_DIR [flags of main_superglue.py ...]
# One teacher, one distilled student and two meta-teachers per task are computed and shared by its variants (with
# --protocol released two distilled students, since phases 2 and 3 take turns there). A run that is
# done is not done again; TASKS="CB COPA" narrows the tasks.
set -euo pipefail
if [[ $# -lt 1 ]]; then
  echo "usage: $0 DATA_DIR [flags of main_superglue.py ...]" >&2
  exit 2
fi
data=$1
[[ -d $data ]] && data=$(cd "$data" && pwd)
shift
cd "$(dirname "$0")/.."
for task in ${TASKS:-BoolQ CB COPA RTE WiC WSC}; do
  for loss in "" --use_comp_loss; do
    for reward in binary real; do
      python main_superglue.py --task "$task" --data_dir "$data" --reward_function "$reward" --undistilled $loss "$@"
    done
    python main_superglue.py --task "$task" --data_dir "$data" --curriculum main_task --undistilled $loss "$@"
  done
done
