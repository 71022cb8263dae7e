"""A trained model as a folder that plain transformers opens: AutoModelForSequenceClassification (or
...MultipleChoice) gives the logits that the run scored. With the tokenizer, a model card, and how the task's
inputs are built (inputs.json), which scripts/predict.py reads.

What those classes have no place for (heads of other tasks, state_predictor) lies in heads.safetensors beside
it, and is not needed to predict.
"""
import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

from bookkeeping.probe import difference
from models import bare_classifier, last_linear, save_extra, save_model
from tasks import KINDS

CLOSE = 1e-5  # largest difference of logits, relative to their largest or to 1
INPUTS_FILE = "inputs.json"
CHECKED = 8  # examples of dev that an export is verified with


def names_of_labels(task):
    """{class number: name}, as `id2label` has it."""
    return dict(enumerate(task.label_names or map(str, task.answers)))


def auto_class(kind):
    """Of transformers, for a kind of tasks."""
    return AutoModelForMultipleChoice if KINDS[kind].choices else AutoModelForSequenceClassification


def plain_classifier(model, task, head_dropout):
    """transformers' own model of a task with the weights of a Model; None where the family has no such class,
    or one with weights that the Model has not."""
    encoder, config = model.encoder, copy.deepcopy(model.encoder.body.config)
    labels = names_of_labels(task) if task.rules.labels.counts and not task.rules.choices else {0: task.name}
    config.id2label, config.label2id = labels, {name: number for number, name in labels.items()}
    config.problem_type = None if task.rules.choices else (
        "single_label_classification" if task.rules.labels.counts else "regression")
    for name in ("classifier_dropout", "cls_dropout", "seq_classif_dropout", "classifier_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, head_dropout)
    try:
        whole = bare_classifier(auto_class(task.kind), config)
    except ValueError:  # transformers' own way to say that the family has none
        return None
    base, given = whole.base_model_prefix, {}
    given |= {f"{base}.{name}": value for name, value in encoder.body.state_dict().items()}
    size, outputs = encoder.dense.weight.shape[0], last_linear(whole)
    pooler = {} if encoder.pooler is None else encoder.pooler.state_dict()
    for name, value in whole.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module == outputs:
            given[name] = getattr(model.heads.linear[task.name], kind)
        elif f"whole.{name}" in pooler:
            given[name] = pooler[f"whole.{name}"]
        elif not name.startswith(f"{base}.") and value.shape in ((size, size), (size,)):
            given[name] = getattr(encoder.dense, kind, None)
    wanted = whole.state_dict().keys()
    if any(given.get(name) is None for name in wanted):
        return None
    whole.load_state_dict({name: given[name].detach().cpu().clone() for name in wanted}, assign=True)
    buffers = dict(encoder.body.named_buffers())  # those that no file holds, such as position numbers
    for name, value in list(whole.named_buffers()):
        if value.is_meta:
            owner = whole.get_submodule(name.rpartition(".")[0])
            there = buffers[name.removeprefix(f"{base}.")].cpu().clone()
            owner.register_buffer(name.rpartition(".")[2], there, persistent=False)
    return whole.eval()


@torch.no_grad()
def plain_logits(classifier, batch, task):
    """What plain transformers gives for a Batch: (examples, outputs)."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None:
        given["token_type_ids"] = batch.token_type_ids
    if task.rules.choices:
        given = {name: value.view(-1, task.rows, value.shape[1]) for name, value in given.items()}
    return classifier(**given).logits


def write_export(model, task, split, folder, tokenizer, facts):
    """Write the folder, and see whether what is reloaded from it gives the model's logits on examples of
    split. facts: what the card and inputs.json say, as the run gathers them. Returns what result.json says of
    it: {"class", "difference", "verified", "reason"}; without a class nothing is verified, and the reason
    says why there is none."""
    folder, names = Path(folder), list(model.heads.tasks)
    device, bf16 = next(model.parameters()).device, model.encoder.bf16
    batch = split.batch(range(min(CHECKED, len(split))), "cpu")
    if not model.encoder.takes_types:
        batch = replace(batch, token_type_ids=None)
    model.cpu().eval()
    model.encoder.bf16 = False  # plain transformers computes in float32
    with torch.no_grad():
        ours = model(task.name, batch)[0]
    whole, reason = plain_classifier(model, task, facts["head_dropout"]), None
    if whole is None:
        reason = (f"transformers has no {auto_class(task.kind).__name__.removeprefix('Auto')} of"
                  f" {type(model.encoder.body).__name__} with these weights")
    # such classes read another pooled output than the family's classifier in a few families
    elif task.rules.choices and difference(ours, plain_logits(whole, batch, task), 1.0) > CLOSE:
        whole, reason = None, f"{type(whole).__name__} reads another pooled output than this model"
    if whole is None:
        save_model(model, folder, names, tokenizer)
    else:
        whole.save_pretrained(folder)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = facts["max_seq_length"]
        tokenizer.save_pretrained(folder)
        # a class that does not read the body's own pooler leaves it out
        lost = not any(name.startswith(f"{whole.base_model_prefix}.pooler.") for name in whole.state_dict())
        save_extra(model, folder, names, own_pooler=lost)
    model.encoder.bf16 = bf16
    model.to(device)
    plain = type(whole).__name__ if whole is not None else None
    facts = {**facts, "class": plain, "why_no_class": reason}
    (folder / INPUTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(facts), encoding="utf-8")
    if plain is None:
        return {"class": None, "difference": None, "verified": None, "reason": reason}
    reloaded = auto_class(task.kind).from_pretrained(folder, dtype=torch.float32, use_safetensors=True,
                                                trust_remote_code=False).eval()
    off = difference(ours, plain_logits(reloaded, batch, task), 1.0)
    return {"class": plain, "difference": off, "verified": off <= CLOSE, "reason": None}


def describe_export(folder, export):
    """A line for the log; a fault of this project where it was not verified."""
    where = f"{Path(folder).parent.name}/{Path(folder).name}"
    if export["class"] is None:
        return (f"{where}: {export['reason']}; AutoModel and heads.safetensors hold the model, and"
                " scripts/predict.py reads them")
    if export["verified"]:
        return (f"{where}: {export['class']} gives the run's logits (largest difference"
                f" {export['difference']:.0e})")
    return (f"error: {where}: {export['class']} gives other logits than the run's model (by"
            f" {export['difference']:.1e}, at most {CLOSE:.0e} expected): a fault of this project, please"
            " report it; the run's own figures do not depend on it, but do not use that folder without"
            " scripts/predict.py")


# --- the card -----------------------------------------------------------------------------------------------

def inputs_in_words(facts):
    """How an input is built."""
    words, choices = facts["inputs"], facts["protocol_choices"]
    if choices["text_case"] == "lower":
        words += " Lower-cased."
    if choices["cls_segment"] == "one":
        words += " The first token has segment 1."
    return words


def card(facts):
    """The model card, as markdown with the hub's header."""
    lines = [
        "---", "library_name: transformers", "tags: [mpdistil, knowledge-distillation]", "---", "",
        f"# {facts['task']}: {facts['row']} of an MPDistil run", "",
        f"{facts['model']}, {facts['layers']} layers, from {facts['encoder']}; protocol {facts['protocol']},"
        f" loss {facts['loss']}, reward {facts['reward']}, curriculum {facts['curriculum']}, seed"
        f" {facts['seed']}.", "", "## What it scored", "",
        f"On dev, the split that chose the epoch or episode: {facts['scored']}.", "",
        "## How it was made", "", f"`{facts['command']}`", "",
        f"Arithmetic: {facts['precision']}. Commit {facts['commit'] or 'unknown'}.", "",
        "## Inputs", "", inputs_in_words(facts),
        f"At most {facts['max_seq_length']} tokens, the longer text cut first. Labels:"
        f" {', '.join(map(str, facts['labels'].values())) if facts['labels'] else 'a number'}.", ""]
    if facts["class"]:
        auto = auto_class(facts["kind"]).__name__
        lines += ["```python", f"from transformers import AutoTokenizer, {auto}", "",
                  f'model = {auto}.from_pretrained("FOLDER")',
                  'tokenizer = AutoTokenizer.from_pretrained("FOLDER")', "```", ""]
    else:
        lines += [f"Plain transformers has no class for it ({facts['why_no_class']}): AutoModel loads the"
                  " encoder, heads.safetensors has the rest.", ""]
    lines += ["scripts/predict.py of the project builds the inputs and writes predictions with"
              " probabilities.", ""]
    return "\n".join(lines)
