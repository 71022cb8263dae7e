"""What plain transformers answers with exported folders; nothing of the project is imported.

    python plain.py < JOBS      a line a job: {"folder", "choices": whether choices are inputs,
                                "inputs": [[pair, ...]]}
"""
import json
import sys

import torch
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification, AutoTokenizer

assert not {"tasks", "models", "data_utils", "main_superglue"} & sys.modules.keys()

for line in sys.stdin:
    job = json.loads(line)
    auto = AutoModelForMultipleChoice if job["choices"] else AutoModelForSequenceClassification
    model, tokenizer = auto.from_pretrained(job["folder"]), AutoTokenizer.from_pretrained(job["folder"])
    answers = []
    for pairs in job["inputs"]:
        texts = [pair if pair[1] is not None else pair[:1] for pair in pairs]
        given = tokenizer(*map(list, zip(*texts)), truncation=True, padding=True, return_tensors="pt")
        if job["choices"]:
            given = {name: value[None] for name, value in given.items()}
        with torch.no_grad():
            logits = model(**given).logits[0]
        regression = model.config.problem_type == "regression"
        answers.append(logits.item() if regression else logits.argmax().item())
    print(json.dumps({"answers": answers, "labels": model.config.id2label}))
