#!/usr/bin/env bash
# The figures of docs/TIMING.md, on this machine, which should have no other work: naive, ours in float32 and
# bfloat16, and the bare step on CB and COPA; a step of every method to compare with; the lab's package, if
# $PEER is the python of an environment that has it; and how long Tables 1a and 4 would take at these steps.
#   [PEER=peer/bin/python] scripts/timing.sh SUPERGLUE_DIR GLUE_DIR ENCODER OUT_DIR [flags of benchmark.py]
# ENCODER has six layers (encoders/MiniLM). Figures go to OUT_DIR as .json and .md, and are printed. Tasks
# without files are named. Uses $PYTHON, else python3.
set -euo pipefail
if [[ $# -lt 4 ]]; then
  echo "usage: scripts/timing.sh SUPERGLUE_DIR GLUE_DIR ENCODER OUT_DIR [flags of benchmark.py]" >&2
  exit 2
fi
superglue=$1 glue=$2 encoder=$3 out=$4
shift 4
here=$(dirname "$0") python=${PYTHON:-python3} encoders=(--teacher_model "$encoder" --nlayers 3)
mkdir -p "$out"

measure() {  # NAME flags ...
  echo "## $1"
  "$python" "$here/benchmark.py" --data_dir "$superglue" "${@:2}" --json "$out/$1.json" | tee "$out/$1.md"
}

measure CB --task CB "${encoders[@]}" --student_model "$encoder" --profile --baselines all "$@"
measure COPA --task COPA "${encoders[@]}" --student_model "$encoder" --profile "$@"
if [[ -n ${PEER:-} ]]; then
  measure peer --task CB --tasks CB RTE --teacher_model "$encoder" --peer "$PEER" "$@"
fi

hours() {  # NAME DATA_DIR TASKS ...: all rows, five seeds
  for precision in fp32 bf16; do
    echo "## $1 in $precision"
    "$python" "$here/sweep.py" --data_dir "$2" --tasks "${@:3}" --seeds 42 43 44 45 46 "${encoders[@]}" \
      --precision "$precision" --estimate_from "$out/CB.json" "$out/COPA.json" |
      sed -n 's/^\(# [A-Za-z0-9-]*: about [0-9.]* h\)$/\1/p; s/^\(# .*: no estimate\): .*/\1/p'
  done
}

{
  hours "Table 1a" "$superglue" BoolQ CB COPA RTE WiC WSC
  hours "Table 4" "$glue" MNLI MRPC QNLI QQP RTE SST-2 STS-B WNLI
} | tee "$out/hours.md"
