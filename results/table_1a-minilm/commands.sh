#!/usr/bin/env bash
# What made this folder, from the repository's root: data/ holds the official SuperGLUE files (BoolQ's train.jsonl with 8,528 of its
# 9,427 rows), encoders/MiniLM comes from `scripts/get_encoder.sh MiniLM encoders/MiniLM`. The runs' commands, one by one: commands.txt.
set -euo pipefail
folder=results/table_1a-minilm
scripts/table_1a.sh data --tasks CB COPA --teacher_model encoders/MiniLM --nlayers 3 --num_episodes 30 --jobs 2 --go
python scripts/make_tables.py runs/table_1a --table 1a --compact $folder/runs.jsonl --output $folder/table.md
# from here on without the runs
python scripts/make_tables.py $folder/runs.jsonl --table 1a --output $folder/table.md
python scripts/make_tables.py $folder/runs.jsonl --table 1a --format tex --output $folder/table.tex
python scripts/make_tables.py $folder/runs.jsonl --table 1a --format csv --output $folder/table.csv
python scripts/make_tables.py $folder/runs.jsonl --table 1a --format html --output $folder/page.html --figures $folder/figures
