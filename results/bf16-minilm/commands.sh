#!/usr/bin/env bash
# What made this folder, from the repository's root: what --precision bf16 does to scores. data/ and encoders/ as in
# results/table_1a-minilm, whose runs are the float32 side: older runs, but those of CB's seed 42 were made anew at
# the commit of these, with the same answers, rewards and actions to the last one. A thread a run.
set -euo pipefail
folder=results/bf16-minilm
OMP_NUM_THREADS=1 python3 scripts/sweep.py --data_dir data --tasks CB COPA --seeds 42 43 44 45 46 \
  --teacher_model encoders/MiniLM --nlayers 3 --num_episodes 30 --precision bf16 \
  --rows teacher student kd kd_200 meta_teacher_col mpdistil_col_binary --output_dir runs/bf16 --go
python3 scripts/make_tables.py runs/bf16 --table 1a --compact $folder/bf16.jsonl --output /dev/null
# from here on without the runs
python3 scripts/compare_runs.py --base results/table_1a-minilm/runs.jsonl --other $folder/bf16.jsonl --output $folder/page.md
