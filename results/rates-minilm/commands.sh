#!/usr/bin/env bash
# What made this folder, from the repository's root; the runs at commit 6089a58: data/ and encoders/ as in
# results/table_1a-minilm. A thread a run (AMD EPYC); the seconds of two runs hold a pause of half an hour.
set -euo pipefail
folder=results/rates-minilm
OMP_NUM_THREADS=1 python3 scripts/tune.py --task COPA --data_dir data --teacher_model encoders/MiniLM --nlayers 3 \
  --precision bf16 --output_dir runs/tune --jobs 2 --go
cp runs/tune/copa/rates.json $folder/copa.json
# from here on without the runs
python3 scripts/show_rates.py $folder/*.json --output $folder/page.md
