#!/usr/bin/env bash
# What made this folder, from the repository's root: data/ holds the official GLUE files (without QNLI's train
# file, MNLI and QQP), encoders/MiniLM comes from `scripts/get_encoder.sh MiniLM encoders/MiniLM`. --mixed: the
# runs of the first seeds of MRPC and WNLI are of an earlier commit than the others.
set -euo pipefail
folder=results/table_4-minilm
tables=("${PYTHON:-python3}" scripts/make_tables.py --table 4 --mixed --note $folder/note.txt)
rows="teacher student kd meta_teacher_col meta_teacher_com mpdistil_col_binary mpdistil_col_real no_curriculum_col kd_200 uniform"
sweep() { scripts/table_4.sh data --teacher_model encoders/MiniLM --nlayers 3 --precision bf16 --rows $rows --go "$@"; }
sweep --tasks MRPC --seeds 42 --num_episodes 10
sweep --tasks WNLI --seeds 42 43 44 --num_episodes 30
some="teacher kd meta_teacher_col mpdistil_col_real kd_200 uniform"
sweep --tasks RTE --seeds 42 --num_episodes 10 --rows $some student
sweep --tasks STS-B --seeds 42 --num_episodes 10 --rows $some
sweep --tasks MRPC --seeds 43 --num_episodes 10 --rows $some student
sweep --tasks SST-2 --seeds 42 43 44 --num_episodes 10 --max_train 2000 --quiz_size 400 --rows $some student
python scripts/keep_predictions.py runs/table_4 --output $folder/test_predictions.zip
"${tables[@]}" runs/table_4 --compact $folder/runs.jsonl --output $folder/table.md
# from here on without the runs
"${tables[@]}" $folder/runs.jsonl --output $folder/table.md
"${tables[@]}" $folder/runs.jsonl --format tex --output $folder/table.tex
"${tables[@]}" $folder/runs.jsonl --format csv --output $folder/table.csv
"${tables[@]}" $folder/runs.jsonl --format html --output $folder/page.html --figures $folder/figures
