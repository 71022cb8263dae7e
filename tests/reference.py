"""What the protocol `paper` computes, once more, as one plain program to hold finished runs against; with
every reading of the points that the sources leave open.

It imports nothing of the project. From a run's folder it takes the arguments and the recorded actions. All
else it computes anew from the raw data, the checkpoints and the seed: in float32 on a CPU, batch after batch,
the frozen teacher run at every step. It knows CB, COPA, WSC, SST-2 and STS-B, and BERT. agreement.py
compares.

With dropout on it draws the masks that the run drew: it calls the same modules on the same batches, in the
same order, after the same seed.
"""
import copy
import csv
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

LABELS = {"CB": ("entailment", "contradiction", "neutral"), "COPA": (0, 1), "WSC": (False, True),
          "SST-2": (0, 1), "STS-B": ()}  # none: a number
QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}
DISCOUNT = 0.99


# --- seeds: every purpose has a stream of its own, named by seed, phase or model, and purpose ---

def seed_of(*names):
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") >> 1


def stream(*names):
    return torch.Generator().manual_seed(seed_of(*names))


def shuffled(examples, size, random):
    """One pass in random order, cut into batches."""
    order = [examples[number] for number in torch.randperm(len(examples), generator=random)]
    return [order[start:start + size] for start in range(0, len(order), size)]


# --- data ---------------------------------------------------------------------------------------------------

def texts_of(task, record):
    """The two texts that the encoder reads, once a choice."""
    if task == "CB":
        return [(record["premise"], record["hypothesis"])]
    if task == "COPA":
        premise = f"{record['premise']} {QUESTIONS[record['question']]}"
        return [(premise, record["choice1"]), (premise, record["choice2"])]
    if task == "SST-2":
        return [(record["sentence"],)]
    if task == "STS-B":
        return [(record["sentence1"], record["sentence2"])]
    target, words = record["target"], record["text"].split(" ")
    for number, sign in ((1, "*"), (2, "#")):                     # * the noun * and # the pronoun #
        first, span = target[f"span{number}_index"], target[f"span{number}_text"].split(" ")
        last = first + len(span) - 1
        assert words[first:last + 1] == span, record              # it stands where its index says
        words[first] = f"{sign} {words[first]}"
        words[last] = f"{words[last]} {sign}"
    return [(" ".join(words), target["span1_text"])]


def records_of(folder, split):
    """The records of a split: SuperGLUE's lines of JSON, GLUE's columns with literal quotes. SST-2's train
    and dev have no idx: there it is the row's number."""
    names = {"train": "train", "dev": "val", "test": "test"}
    path = folder / f"{names[split]}.jsonl"
    if path.is_file():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with open(folder / f"{split}.tsv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{"idx": int(row.get("index", number)), **row} for number, row in enumerate(rows)]


def label_of(task, record):
    """Its class, or its score; -1: not given."""
    if task == "STS-B":
        return float(record.get("score", -1))
    label = record.get("label", -1)
    label = int(label) if task == "SST-2" else label
    return LABELS[task].index(label) if label in LABELS[task] else -1


def read(run, task, split):
    """Examples with token ids and segments, a row a choice."""
    examples = []
    for record in records_of(Path(run.args.data_dir) / task, split):
        rows = [run.tokenizer(*texts, truncation="longest_first", max_length=run.args.max_seq_length)
                for texts in texts_of(task, record)]
        examples.append(SimpleNamespace(idx=record["idx"], label=label_of(task, record), rows=rows))
    return examples


def divide(task, examples, split_seed):
    """train and quiz, 9:1, in the file's order. Of each label, or rounded score, the tenth with the smallest
    hashes is quiz; and one more of the labels with the largest remainders, so that quiz has round(n / 10)
    examples."""
    def rank(example):
        return hashlib.sha256(repr((split_seed, task, example.idx)).encode()).digest()

    members = {}
    for example in sorted(examples, key=rank):
        members.setdefault(math.floor(example.label + 0.5), []).append(example.idx)
    missing = (len(examples) + 5) // 10 - sum(len(found) // 10 for found in members.values())
    one_more = sorted(members, key=lambda label: (-(len(members[label]) % 10), label))[:missing]
    quiz = {idx for label, found in members.items() for idx in found[:len(found) // 10 + (label in one_more)]}
    return [e for e in examples if e.idx not in quiz], [e for e in examples if e.idx in quiz]


def batch_of(run, examples):
    """What the encoder reads, padded to the longest row; and the labels."""
    rows = [row for example in examples for row in example.rows]
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name, value):
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    inputs = {"input_ids": padded("input_ids", run.tokenizer.pad_token_id),
              "attention_mask": padded("attention_mask", 0), "token_type_ids": padded("token_type_ids", 0)}
    return inputs, torch.tensor([example.label for example in examples])


# --- models -------------------------------------------------------------------------------------------------

def new_linear(inputs, outputs, random):
    """torch's own initialisation, from `random`."""
    linear = nn.Linear(inputs, outputs)
    for parameter in (linear.weight, linear.bias):
        nn.init.uniform_(parameter, -inputs ** -0.5, inputs ** -0.5, generator=random)
    return linear


def new_model(run, role, layers=None):
    """The pre-trained encoder, or its first layers; a new head a task; a new state_predictor."""
    body = AutoModel.from_pretrained(getattr(run.args, f"{role}_model"), dtype=torch.float32)
    body.encoder.layer = body.encoder.layer[:layers]
    hidden, heads = body.config.hidden_size, nn.ModuleDict()
    for task in run.args.tasks:
        heads[task] = nn.Linear(hidden, 1 if task == "COPA" else len(LABELS[task]) or 1)
        nn.init.normal_(heads[task].weight, std=0.02, generator=stream(run.seed, role, "head", task))
        nn.init.zeros_(heads[task].bias)
    predictor = new_linear(hidden, 1, stream(run.seed, role, "state_predictor"))
    return nn.ModuleDict({"body": body, "heads": heads, "state_predictor": predictor})


def encode(model, inputs):
    """h: (rows, hidden), pooled; and the [CLS] states: (1 + layers, rows, hidden), the embeddings first."""
    out = model["body"](**inputs, output_hidden_states=True)
    return out.pooler_output, torch.stack([states[:, 0] for states in out.hidden_states])


def read_head(run, model, task, h):
    """Logits: (batch, classes). COPA's classes are its choices, a row of h each. STS-B: (batch, 1)."""
    heads, width = model["heads"], len(LABELS[task]) or 1
    return heads[task](F.dropout(h, run.args.head_dropout, heads.training)).view(-1, width)


def ce_of(task, logits, labels):
    """CE; of numbers MSE."""
    return F.cross_entropy(logits, labels) if LABELS[task] else (logits[:, 0] - labels).square().mean()


def p_of(task, logits, labels):
    """p(y|x); of numbers -|y - output|: (batch)."""
    if not LABELS[task]:
        return -(labels - logits[:, 0]).abs()
    return logits.softmax(-1)[range(len(labels)), labels]


def soft_of(task, logits, teacher_logits, t):
    """t^2 MSE of tempered probabilities; of numbers MSE of both outputs."""
    if not LABELS[task]:
        return (logits - teacher_logits).square().mean()
    return t ** 2 * ((logits / t).softmax(-1) - (teacher_logits / t).softmax(-1)).square().mean()


def scores_of(task, logits, labels):
    """What a look says of a split; the selecting figure first."""
    loss = ce_of(task, logits, torch.tensor(labels)).item()
    if not LABELS[task]:
        answers, total = logits[:, 0].double().numpy(), len(labels)
        labels = np.array(labels, dtype=np.float32).astype(float)
        return {"pearson": np.corrcoef(answers, labels)[0, 1],
                "spearman": np.corrcoef(rankdata(answers), rankdata(labels))[0, 1],
                "mse": np.square(answers - labels).mean(), "total": total, "loss": loss}
    answers = logits.argmax(-1).tolist()
    correct = sum(answer == label for answer, label in zip(answers, labels))
    scores = {"accuracy": correct / len(labels), "correct": correct, "total": len(labels), "loss": loss}
    if task == "CB":
        scores["f1"] = float(f1_score(labels, answers, average="macro", zero_division=0))
    return scores


@torch.no_grad()
def predict(run, model, split):
    """Logits of a whole split, dropout off."""
    model.eval()
    return read_head(run, model, run.task, encode(model, batch_of(run, split)[0])[0])


# --- what the phases share ----------------------------------------------------------------------------------

def new_optimizer(run, module, rate):
    """AdamW at a constant rate. Biases and LayerNorms do not decay."""
    decayed, spared = [], []
    for name, parameter in module.named_parameters():
        (spared if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    return torch.optim.AdamW([{"params": decayed, "weight_decay": run.args.weight_decay},
                              {"params": spared, "weight_decay": 0.0}], lr=rate)


def update(run, loss, module, optimizer):
    """One step. Returns the gradient's norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), run.args.max_grad_norm)
    optimizer.step()
    return norm


def mean_of(steps):
    return {name: float(np.mean([step[name].item() for step in steps])) for name in steps[0]}


def look(run, model, learner, best, line):
    """Score the model and write the line. Returns the first best look so far, with the learner's weights."""
    scores = {name: scores_of(run.task, predict(run, model, run.data[name]),
                              [example.label for example in run.data[name]])
              for name in sorted({"dev", run.args.select_on})}
    score = next(iter(scores[run.args.select_on].values()))
    number = line["episode" if "episode" in line else "epoch"]
    better = best is None or score > best["score"]
    run.metrics.append({**line, "scores": scores, "best": better})
    now = {"score": score, "number": number, "weights": copy.deepcopy(learner.state_dict())}
    return now if better else best


def keep(run, row, model, learner, best):
    """Put the best look's weights into the learner: a row of the table."""
    learner.load_state_dict(best["weights"])
    run.rows[row] = {"number": best["number"], "dev": predict(run, model, run.data["dev"]),
                     "test": predict(run, model, run.data["test"])}
    run.weights[row] = best["weights"]


def fit(run, phase, model, learner, rate, passes, figures_of):
    """Phases 1 to 3. passes: lists of batches, a look after each. figures_of a batch: `loss` is in them."""
    torch.manual_seed(seed_of(run.seed, phase, "dropout"))
    optimizer, best = new_optimizer(run, learner, rate), None
    for epoch, batches in enumerate(passes, 1):
        steps = []
        for examples in batches:
            learner.train()
            steps.append(figures_of(*batch_of(run, examples)))
            steps[-1]["gradient_norm"] = update(run, steps[-1]["loss"], learner, optimizer)
        line = {"phase": phase, "epoch": epoch, **mean_of(steps), "learning_rate": rate}
        best = look(run, model, learner, best, line)
    keep(run, phase, model, learner, best)


def passes_over(run, split, phase, size, count):
    random = stream(run.seed, phase, "order")
    return [shuffled(run.data[split], size, random) for _ in range(count)]


def steps_of_phase_4(run, size):
    """kd_200: as many steps and looks as phase 4 has, in whole batches from passes over train."""
    random, looks = stream(run.seed, "kd_200", "order"), []
    steps = -(-len(run.data["quiz"]) // run.args.val_dataloader_size)
    for _ in range(run.args.num_episodes):
        order = []
        while len(order) < steps * size:
            order += shuffled(run.data["train"], len(run.data["train"]), random)[0]
        looks.append([order[step * size:(step + 1) * size] for step in range(steps)])
    return looks


# --- the phases ---------------------------------------------------------------------------------------------

def fine_tune(run, teacher, passes):
    """Phase 1, on train: L = CE(T(x), y)."""
    def figures_of(inputs, labels):
        logits = read_head(run, teacher, run.task, encode(teacher, inputs)[0])
        return {"loss": ce_of(run.task, logits, labels)}

    fit(run, "teacher", teacher, teacher, run.args.teacher_learning_rate, passes, figures_of)


def distill(run, phase, student, teacher, passes):
    """Phase 2, on train: L = alpha * soft + (1 - alpha) * CE(S(x), y) + beta * pkd. Without a teacher: CE."""
    alpha, beta = (run.args.alpha, run.args.beta) if teacher else (0.0, 0.0)
    t, between = run.args.temperature, list(range(1, run.args.nlayers))  # layers 1 to n - 1, of both
    of_teacher = between
    if teacher and run.choices["pkd_layers"] == "skip":  # every (N / n)-th
        every = teacher["body"].config.num_hidden_layers / run.args.nlayers
        of_teacher = [math.floor(layer * every + 1e-9) for layer in between]

    def unit(states):
        return states / states.norm(dim=-1, keepdim=True)

    def figures_of(inputs, labels):
        h, states = encode(student, inputs)
        logits = read_head(run, student, run.task, h)
        ce, soft, pkd = ce_of(run.task, logits, labels), torch.zeros(()), torch.zeros(())
        if teacher:
            with torch.no_grad():
                h_teacher, teacher_states = encode(teacher, inputs)
                teacher_logits = read_head(run, teacher, run.task, h_teacher)
            soft = soft_of(run.task, logits, teacher_logits, t)
            if run.choices["soft_loss"] == "logits":
                soft = (logits - teacher_logits).square().mean()
            pkd = (unit(states[between]) - unit(teacher_states[of_teacher])).square().mean()
        return {"loss": alpha * soft + (1 - alpha) * ce + beta * pkd, "ce": ce, "soft": soft, "pkd": pkd}

    fit(run, phase, student, student, run.args.learning_rate, passes, figures_of)


def teach_to_teach(run, meta_teacher, teacher, student, passes):
    """Phase 3, on quiz, T' alone: L = 0.5 * CE(T'(h_T), y) + 0.5 * CE(T'(h_S), y), or competitive:
    L = CE(T'(h_T), y) - mean p_T'(y|h_T) + mean p_T'(y|h_S)."""
    def figures_of(inputs, labels):
        with torch.no_grad():
            h_teacher, h_student = encode(teacher, inputs)[0], encode(student, inputs)[0]
        on_teacher = read_head(run, meta_teacher, run.task, h_teacher)
        on_student = read_head(run, meta_teacher, run.task, h_student)
        ce_teacher, ce_student = (ce_of(run.task, logits, labels) for logits in (on_teacher, on_student))
        p_teacher, p_student = (p_of(run.task, logits, labels).mean() for logits in (on_teacher, on_student))
        competitive = run.args.use_comp_loss
        loss = ce_teacher - p_teacher + p_student if competitive else 0.5 * ce_teacher + 0.5 * ce_student
        return {"loss": loss, "ce_teacher": ce_teacher, "ce_student": ce_student, "p_teacher": p_teacher,
                "p_student": p_student}

    learner, rate = meta_teacher["heads"], run.args.meta_learning_rate
    fit(run, "meta_teacher", meta_teacher, learner, rate, passes, figures_of)


def log_pi_of(run, policy, student):
    """log pi(. | state): (tasks). The state is a constant, read from the student as it is now."""
    if run.args.curriculum == "uniform":
        return torch.full((len(run.args.tasks),), 1 / len(run.args.tasks)).log()
    if run.args.curriculum == "main_task":
        return torch.tensor([float(task == run.task) for task in run.args.tasks]).log()
    return policy(torch.tensor([state_of(student)])).log_softmax(-1)[0]


@torch.no_grad()
def state_of(student):
    """The curriculum's state, hidden numbers."""
    return student["state_predictor"](student["body"].pooler.dense.weight).flatten().tolist()


@torch.no_grad()
def gain_of(run, student, teacher, meta_teacher, examples):
    """What a reward is of: p_S(y|x) against p_T'(y|h_T(x)) on examples of the main quiz, no dropout."""
    inputs, labels = batch_of(run, examples)
    student.eval()
    p_student = p_of(run.task, read_head(run, student, run.task, encode(student, inputs)[0]), labels)
    on_teacher = read_head(run, meta_teacher, run.task, encode(teacher, inputs)[0])
    p_meta_teacher = p_of(run.task, on_teacher, labels)
    binary = run.args.reward_function == "binary"
    gain = p_student > p_meta_teacher if binary else p_student - p_meta_teacher
    return gain.sum().item() / len(run.data["quiz"])


def follow_curriculum(run, student, teacher, meta_teacher, policy):
    """Phase 4: an action picks a task, a quiz batch of that task trains the student, and a quiz batch of the
    main task gives the reward. After the episode the policy learns (REINFORCE)."""
    args, tasks, size = run.args, run.args.tasks, run.args.val_dataloader_size
    optimizer, best = new_optimizer(run, student, args.learning_rate), None
    policy_optimizer = new_optimizer(run, policy, args.policy_learning_rate)
    all_returns = []  # of the episodes before
    main_order, sampling = stream(run.seed, "mpdistil", "order"), stream(run.seed, "mpdistil", "actions")
    quiz_order = {task: stream(run.seed, "mpdistil", "quiz", task) for task in tasks}
    torch.manual_seed(seed_of(run.seed, "mpdistil", "dropout"))
    for episode, recorded in enumerate(run.recorded, 1):
        taken, waiting = recorded["actions"], {task: [] for task in tasks}
        steps, rewards, log_pis, drawn, states = [], [], [], [], []
        for task, main_examples in zip(taken, shuffled(run.data["quiz"], size, main_order)):
            # the policy, and what it draws
            log_pis.append(log_pi_of(run, policy, student))
            states.append(state_of(student))
            pi = log_pis[-1].detach().exp()
            by_chance = args.curriculum != "main_task"
            drawn.append(tasks[torch.multinomial(pi, 1, generator=sampling)] if by_chance else run.task)

            gained_before = gain_of(run, student, teacher, meta_teacher, main_examples)

            # L_S = CE(S_a(x), y) - mean p_S(y|x) + mean p_T'(y|h_S(x)): dropout in the student alone
            waiting[task] = waiting[task] or shuffled(run.quiz[task], size, quiz_order[task])
            inputs, labels = batch_of(run, waiting[task].pop(0))
            student.train(), meta_teacher.eval()
            h = encode(student, inputs)[0]
            logits = read_head(run, student, task, h)
            ce, p_student = ce_of(task, logits, labels), p_of(task, logits, labels).mean()
            attached = run.choices["meta_term"] == "attached"
            on_student = read_head(run, meta_teacher, task, h if attached else h.detach())
            p_meta_teacher = p_of(task, on_student, labels).mean()
            p_meta_teacher = p_meta_teacher if attached else p_meta_teacher.detach()
            loss = ce - p_student + p_meta_teacher
            steps.append({"loss": loss, "ce": ce, "p_student": p_student, "p_meta_teacher": p_meta_teacher,
                          "gradient_norm": update(run, loss, student, optimizer)})

            # the reward, after the update; or what the update changed of it
            rewards.append(gain_of(run, student, teacher, meta_teacher, main_examples))
            if run.choices["reward_of"] == "improvement":
                rewards[-1] -= gained_before

        # the policy's loss: - mean of advantage * log pi(action | state)
        places = range(len(rewards))
        returns = [sum(DISCOUNT ** (k - t) * rewards[k] for k in places if k >= t) for t in places]
        advantages = torch.tensor(returns) - float(np.mean(returns))
        if run.choices["advantage"] == "step_mean":  # against the same step of the episodes before
            advantages = torch.tensor(returns) - torch.tensor(np.mean(all_returns or [returns], axis=0))
        all_returns.append(returns)
        advantages = advantages.float()
        policy_loss = -(advantages * torch.stack([log_pis[t][tasks.index(taken[t])] for t in places])).mean()
        line = {"phase": "mpdistil", "episode": episode, **mean_of(steps), "policy_loss": policy_loss.item()}
        if args.curriculum == "policy":
            line["policy_gradient_norm"] = update(run, policy_loss, policy, policy_optimizer).item()
        pi = torch.stack(log_pis).detach().exp()
        line |= {"reward": sum(rewards), "entropy": -torch.xlogy(pi, pi).sum(-1).mean().item(),
                 "learning_rate": args.learning_rate}
        run.trajectories.append({"episode": episode, "actions": drawn, "credited": drawn, "rewards": rewards,
                                 "advantages": advantages.tolist(), "probabilities": pi.tolist(),
                                 **({"state": states[0]} if args.curriculum == "policy" else {})})
        best = look(run, student, student, best, line)
    keep(run, "no_curriculum" if args.curriculum == "main_task" else "mpdistil", student, student, best)
    run.weights["policy"] = policy.state_dict(prefix="linear.")


def recompute(folder):
    """The run in a folder. Gives its lines, its rows (kept look, logits of dev and test) and its weights."""
    args = SimpleNamespace(**json.loads((Path(folder) / "args.json").read_text(encoding="utf-8")))
    run = SimpleNamespace(args=args, task=args.task, seed=args.seed,
                          tokenizer=AutoTokenizer.from_pretrained(args.teacher_model),
                          choices=args.protocol_choices, metrics=[], trajectories=[], rows={}, weights={})
    lines = (Path(folder) / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    run.recorded = [json.loads(line) for line in lines]
    divided = {task: divide(task, read(run, task, "train"), args.split_seed) for task in args.tasks}
    run.quiz = {task: quiz for task, (_, quiz) in divided.items()}
    run.data = {"train": divided[run.task][0], "quiz": run.quiz[run.task],
                "dev": read(run, run.task, "dev"), "test": read(run, run.task, "test")}
    size, quiz_size = args.train_dataloader_size, args.val_dataloader_size

    teacher = new_model(run, "teacher")
    fine_tune(run, teacher, passes_over(run, "train", "teacher", size, args.teacher_epochs))
    if args.undistilled:
        passes = passes_over(run, "train", "student", size, args.epochs)
        distill(run, "student", new_model(run, "student", args.nlayers), None, passes)
    student = new_model(run, "student", args.nlayers)
    distill(run, "kd", student, teacher, passes_over(run, "train", "kd", size, args.epochs))
    meta_teacher = nn.ModuleDict({"body": teacher["body"], "heads": copy.deepcopy(teacher["heads"])})
    passes = passes_over(run, "quiz", "meta_teacher", quiz_size, args.meta_epochs)
    teach_to_teach(run, meta_teacher, teacher, student, passes)
    if args.kd_200:
        distill(run, "kd_200", copy.deepcopy(student), teacher, steps_of_phase_4(run, quiz_size))
    policy = new_linear(student["body"].config.hidden_size, len(args.tasks), stream(run.seed, "policy"))
    follow_curriculum(run, student, teacher, meta_teacher, policy)
    return run
