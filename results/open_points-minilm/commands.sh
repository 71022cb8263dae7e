#!/usr/bin/env bash
# What made this folder, from the repository's root: what other readings of the open points do, and what the
# curriculum policies learnt. Base: the runs of results/table_1a-minilm-200; the others were made likewise, at
# commit 6089a58 with the rates as flags. A thread a run (AMD EPYC).
set -euo pipefail
folder=results/open_points-minilm runs=runs/own/copa
sweep() {
  OMP_NUM_THREADS=1 scripts/table_1a.sh data --tasks COPA --teacher_model encoders/MiniLM --nlayers 3 \
    --precision bf16 --rates results/rates-minilm/copa.json --output_dir runs/own --jobs 2 --go "$@"
}
for reading in advantage=step_mean reward_of=improvement meta_term=attached; do
  sweep --seeds 42 43 44 --rows mpdistil_col_real --set $reading
done
for reading in pkd_layers=skip soft_loss=logits; do
  sweep --seeds 42 43 44 45 46 --rows kd --set $reading
done
python3 scripts/policy_report.py $runs/paper-col-real-policy-* $runs/paper-advantage=* $runs/paper-reward_of=* \
  $runs/paper-col-binary-uniform-* --compact $folder/policy.jsonl --output /dev/null
for reading in advantage=step_mean reward_of=improvement meta_term=attached pkd_layers=skip soft_loss=logits; do
  python3 scripts/make_tables.py $runs/paper-$reading-col-* --table 1a --compact $folder/$reading.jsonl --output /dev/null
done
# from here on without the runs
python3 scripts/policy_report.py $folder/policy.jsonl --output $folder/policy.md --figure $folder/policy.svg
python3 scripts/compare_runs.py --base results/table_1a-minilm-200/runs.jsonl --rows kd mpdistil_col_real --other $folder/advantage=step_mean.jsonl --other $folder/reward_of=improvement.jsonl --other $folder/meta_term=attached.jsonl --other $folder/pkd_layers=skip.jsonl --other $folder/soft_loss=logits.jsonl --output $folder/page.md
