#!/usr/bin/env bash
# All four phases on the sample data with a real pre-trained encoder (MiniLM, 6 layers -> 3), in minutes on two cores.
# Makes .venv and encoders/MiniLM once. The folder of the run is runs/quickstart, with a page about it, report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment .venv requirements.txt scripts/requirements.txt
scripts/get_encoder.sh MiniLM encoders/MiniLM
python main_superglue.py --task RTE --data_dir sample_data --teacher_model encoders/MiniLM --nlayers 3 \
  --teacher_epochs 4 --teacher_learning_rate 1e-4 --epochs 8 --learning_rate 1e-4 --meta_epochs 5 --num_episodes 20 --output_dir runs/quickstart
if python -c 'import matplotlib' 2> /dev/null; then python scripts/report.py runs/quickstart; fi
