#!/usr/bin/env bash
# The paper's loop: every task with both losses and both rewards, with the undistilled student and without a curriculum.
#   scripts/run_superglue.sh DATA_DIR [flags of main_superglue.py ...]
# One teacher, one distilled student and two meta-teachers per task are computed first, then the six runs of phase 4 share
# them (with --protocol released two distilled students, since phases 2 and 3 take turns there). A run that is done is not
# done again, and one that was ended goes on. TASKS="CB COPA" narrows the tasks; JOBS=2 lets two runs of phase 4 share the GPU or, each
# with its part of the cores, the CPU. A signal is passed on to the runs, which save and end, and no other is begun.
set -euo pipefail
if [[ $# -lt 1 ]]; then
  echo "usage: $0 DATA_DIR [flags of main_superglue.py ...]" >&2
  exit 2
fi
data=$1
[[ -d $data ]] && data=$(cd "$data" && pwd)
shift
cd "$(dirname "$0")/.."
jobs=${JOBS:-1} failed=0 stop=0 pids=()
trap 'stop=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT USR1

start() {  # in the background, so that a signal is heard at once
  (( stop )) && return
  python main_superglue.py --task "$task" --data_dir "$data" --undistilled "$@" &
  pids+=($!)
}
finish() {  # wait for all that run; a signal ends one wait, not the run
  for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
    wait "$pid" || failed=1
  done
  pids=()
}

for task in ${TASKS:-BoolQ CB COPA RTE WiC WSC}; do
  for loss in "" --use_comp_loss; do
    start $loss --stop_after meta_teacher "$@"
    finish
  done
  (( failed )) && exit 1
  (( jobs > 1 )) && export OMP_NUM_THREADS=$(( ($(nproc) + jobs - 1) / jobs ))
  for loss in "" --use_comp_loss; do
    for variant in "--reward_function binary" "--reward_function real" "--curriculum main_task"; do
      while (( $(jobs -rp | wc -l) >= jobs )); do sleep 0.2; done
      start $loss $variant "$@"
    done
  done
  finish
  (( jobs > 1 )) && unset OMP_NUM_THREADS
done
exit $failed
