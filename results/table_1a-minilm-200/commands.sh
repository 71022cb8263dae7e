#!/usr/bin/env bash
# What made this folder, from the repository's root, at commit 6089a58: data/ and encoders/ as in
# results/table_1a-minilm, rates as in results/rates-minilm. A thread a run (AMD EPYC).
set -euo pipefail
folder=results/table_1a-minilm-200
tables=("${PYTHON:-python3}" scripts/make_tables.py --table 1a --note $folder/note.txt)
sweep() {
  OMP_NUM_THREADS=1 scripts/table_1a.sh data --teacher_model encoders/MiniLM --nlayers 3 --precision bf16 \
    --output_dir runs/own --jobs 2 --go "$@"
}
sweep --tasks COPA --rates results/rates-minilm/copa.json --seeds 42 43 44 \
  --rows mpdistil_col_real mpdistil_learning no_curriculum_col uniform
sweep --tasks COPA --rates results/rates-minilm/copa.json --seeds 42 43 44 45 46 --rows student kd
sweep --tasks COPA --rates results/rates-minilm/copa.json --seeds 42 43 44 --rows kd_200
sweep --tasks COPA --rates results/rates-minilm/copa.json --seeds 42 43 --rows meta_teacher_com
python3 scripts/keep_predictions.py runs/own/copa/paper-co[lm]-* runs/own/copa/paper-*-learning-* \
  --output $folder/test_predictions.zip
"${tables[@]}" runs/own/copa/paper-co[lm]-* runs/own/copa/paper-*-learning-* --compact $folder/runs.jsonl --output $folder/table.md
# from here on without the runs
"${tables[@]}" $folder/runs.jsonl --output $folder/table.md
"${tables[@]}" $folder/runs.jsonl --format tex --output $folder/table.tex
"${tables[@]}" $folder/runs.jsonl --format csv --output $folder/table.csv
"${tables[@]}" $folder/runs.jsonl --format html --output $folder/page.html --figures $folder/figures
