"""Replays a trace of the authors' released code with this project's own phases, and compares every figure.

A case folder holds case.json (fields explained there), trace.json, data.npz, init.safetensors and
final.safetensors. Batch orders and actions are taken from the trace; everything else is computed by the
functions and loops that the command line runs, with the protocol `released`. What they compute is seen where
a saver would see it: a Witness is the saver and the log of every loop.
"""
import copy
import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from arguments import PROTOCOLS
from bookkeeping.states import NoSaver
from curriculum import CurriculumTraining, Policy, train_curriculum
from data_utils import RandomStreams, Split
from meta_policy import (
    Distillation,
    Evaluator,
    MetaTraining,
    Training,
    distillation_loop,
    meta_teacher_loop,
    run_epochs,
    train_teacher,
)
from models import Encoder, FrozenEncoder, Model, predict, predict_heads
from tasks import find_task, protocol_task

# the second for attention key biases, whose gradient is zero in exact arithmetic
RELATIVE, ABSOLUTE = 1e-8, 1e-10
PHASES = {"teacher": "p1", "kd": "p2", "meta_teacher": "p3", "mpdistil": "p4"}  # as the trace calls them
FIGURES = {  # of a step: our name -> the trace's
    "p1": {"loss": "loss", "gradient_norm": "grad_norm_before_clip"},
    "p2": {"ce": "ce", "soft": "soft", "pkd": "pkd", "loss": "total",
           "gradient_norm": "grad_norm_before_clip"},
    "p3": {"ce_teacher": "ce_hT", "ce_student": "ce_hS", "p_teacher": "mean_p_y_hT",
           "p_student": "mean_p_y_hS", "loss": "total", "gradient_norm": "grad_norm_before_clip"},
    "p4": {"ce": "ce", "p_student": "mean_p_S_y", "p_meta_teacher": "mean_p_T2_y_hS", "loss": "loss",
           "gradient_norm": "accumulated_grad_norm_before_clip"},
}


class Comparison:
    """Largest relative difference per kind of figure; the first one out of tolerance, if any."""

    def __init__(self):
        self.largest, self.first = {}, None

    def close(self, kind, ours, theirs, absolute=False, scale=1e-300):
        """The difference is relative to the largest of their figures, or to `scale` if that is larger."""
        ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        same_shape = ours.shape == theirs.shape
        distance = np.abs(ours - theirs).max(initial=0) if same_shape else np.inf
        difference = distance if absolute else distance / max(np.abs(theirs).max(initial=0), scale)
        difference = 0.0 if distance == 0 else float(difference)
        self.largest[kind] = max(self.largest.get(kind, 0.0), difference)
        if not difference <= (ABSOLUTE if absolute else RELATIVE):
            self.first = self.first or f"{kind}: {difference:.3g}"

    def equal(self, kind, ours, theirs):
        self.largest.setdefault(kind, 0.0)
        if ours != theirs:
            self.largest[kind] = np.inf
            self.first = self.first or f"{kind}: {ours!r} instead of {theirs!r}"

    def weights(self, kind, ours, theirs):
        """Tensors, or their norms, by name."""
        self.equal(f"{kind} names", sorted(ours), sorted(theirs))
        for name in sorted(ours.keys() & theirs.keys()):
            key_bias = name.endswith("attention.self.key.bias")
            self.close(
                f"{kind} of key biases (absolute)" if key_bias else kind,
                ours[name],
                theirs[name],
                absolute=key_bias,
            )


class Trace:
    """The events of trace.json by type, in order."""

    def __init__(self, folder):
        folder = Path(folder)
        self.case = json.loads((folder / "case.json").read_text())
        events = json.loads((folder / "trace.json").read_text())["events"]
        self.events = {}
        for event in events:
            self.events.setdefault(event["type"], []).append(event)
        self.init, self.final = (load_file(folder / f"{name}.safetensors") for name in ("init", "final"))
        self.data = np.load(folder / "data.npz")

    def of(self, kind, **where):
        return [event for event in self.events[kind]
                if all(event.get(key) == value for key, value in where.items())]


class TraceStreams(RandomStreams):
    """RandomStreams that repeat a trace's batch orders and actions."""

    def __init__(self, trace, phase, case_names):
        """case_names: our name of a task -> the trace's."""
        names = {name: number for number, name in enumerate(case_names.values())}
        self.case_names, self.held = case_names, trace.of("held_batches")[0]["batches"]
        steps = trace.of(f"{PHASES[phase]}_step")
        key, count = ("episode", "main_indices") if phase == "mpdistil" else ("epoch", "indices")
        passes = {}
        for step in steps:
            passes.setdefault(step[key], []).append(np.array(step[count]))
        self.passes = [passes[number] for number in sorted(passes)]
        if phase == "mpdistil":
            self.first = [names[step["current_action"]] for step in steps if step["step"] == 0]
            self.picks = [step["aux_batch_id"] for step in steps]
            self.samples = [step["sampled_index"] for step in steps]

    def batches(self, size, batch_size, *purpose, count=None):
        if purpose[0] == "quiz":
            return [np.array(batch) for batch in self.held[self.case_names[purpose[1]]]]
        return self.passes.pop(0)

    def pick(self, count, *purpose):
        return (self.first if purpose == ("first_action",) else self.picks).pop(0)

    def action(self, probabilities):
        return self.samples.pop(0)


class Witness(NoSaver):
    """The log that the loops write to, and their saver, which keeps nothing: it compares with the trace what
    they say and show, in the order in which they come to it."""

    def __init__(self, trace, compare, case_names):
        self.trace, self.compare, self.case_names, self.said, self.taken = trace, compare, case_names, {}, {}
        self.size = trace.case["sizes"][f"{trace.case['task']}_held"]
        self.given = trace.case["settings"]

    # as a log

    def event(self, **values):
        self.said.update(values)
        if values["phase"] != "mpdistil":
            self.compare_epoch(PHASES[values["phase"]], self.next(f"{PHASES[values['phase']]}_epoch"))

    def trajectory(self, **values):
        self.said.update(values)

    def progress(self, phase, total):
        return nullcontext(MagicMock())

    # as a saver

    def consider(self, state, at_end=False):
        if "episode" in state:
            self.compare_episode(state) if at_end else self.compare_step_of_episode(state)
        elif not at_end:
            phase, loop = next(
                (phase, loop) for phase, loop in state.items() if phase != "random" and loop["epoch"].order
            )
            prefix, meter = PHASES[phase], loop["meter"]
            event = self.next(f"{prefix}_step")
            self.compare.equal(f"{prefix} epoch", loop["epoch"].number - 1, event["epoch"])
            self.compare.equal(f"{prefix} learning rate", rates(loop["model"]), {event["lr"]})
            self.compare_figures(prefix, meter.steps[-1], event)

    def next(self, kind):
        """The trace's next event of a kind."""
        self.taken[kind] = self.taken.get(kind, 0) + 1
        return self.trace.of(kind)[self.taken[kind] - 1]

    def compare_lengths(self, prefix):
        """Whether a phase came to its end, and no further."""
        for kind in (f"{prefix}_step", f"{prefix}_{'episode' if prefix == 'p4' else 'epoch'}"):
            name = f"{prefix} number of {kind.split('_')[1]}s"
            self.compare.equal(name, self.taken.get(kind, 0), len(self.trace.of(kind)))

    def compare_figures(self, prefix, ours, event):
        for mine, name in FIGURES[prefix].items():
            if name in event:
                self.compare.close(f"{prefix} {name}", ours[mine].item(), event[name])

    def compare_epoch(self, prefix, event):
        """Scores, and whether they were the best so far."""
        dev, metrics = self.said["scores"]["dev"], event["dev_metrics"]
        self.compare.close(f"{prefix} dev accuracy", dev["accuracy"], metrics["acc"])
        if "f1" in metrics:
            self.compare.close(f"{prefix} dev f1", dev["f1"], metrics["f1"])
        self.compare.close(f"{prefix} dev loss", dev["loss"], metrics["dev_loss"])
        self.compare.equal(f"{prefix} kept", self.said["best"], event["was_best"])

    def compare_step_of_episode(self, state):
        compare, episode, step = self.compare, state["episode"], self.next("p4_step")
        batch = episode.order[len(episode.rewards) - 1]
        compare.equal("p4 episode", episode.number - 1, step["episode"])
        compare.equal(
            "p4 learning rates",
            (rates(state["student"]), rates(state["policy"])),
            ({self.given["learning_rate"]}, {self.given["meta_learning_rate"]}),
        )
        self.compare_figures("p4", state["meter"].steps[-1], step)
        compare.close("p4 state_l2", episode.states[-1].norm().item(), step["state_l2"])
        compare.close("p4 p_S_y", episode.p_before[batch], step["p_S_y"])
        compare.close("p4 p_T2_y", episode.p_teacher[batch], step["p_T2_y"])
        compare.close(
            "p4 reward", episode.rewards[-1].item(), float(np.float32(step["reward"]) / np.float32(self.size))
        )

    def compare_episode(self, state):
        compare, episode, said = self.compare, state["episode"], self.said
        event = self.next("p4_episode")
        steps = self.trace.of("p4_step", episode=event["episode"])
        compare.equal("p4 number of states", len({each.norm().item() for each in episode.states}), 1)
        compare.equal("p4 number of actions", len(said["actions"]), len(steps))
        for step, *ours in zip(steps, said["probabilities"], said["actions"], said["credited"]):
            compare.close("p4 action_probs", ours[0], step["action_probs"])
            actions = tuple(self.case_names[name] for name in ours[1:])
            compare.equal("p4 actions", actions, (step["current_action"], step["next_action"]))
        self.compare_epoch("p4", event)
        # the trace divides the float32 sum, we sum the divided rewards: the same up to float32's rounding of
        # the terms
        rounding = len(said["rewards"]) * np.finfo(np.float32).eps * sum(map(abs, said["rewards"]))
        compare.equal(
            "p4 total_rewards (float32)", abs(said["reward"] - event["total_rewards"]) <= rounding, True
        )
        compare.close("p4 advantages", said["advantages"], event["advantages"])
        # where one action was taken throughout, these two are what rounding left of the advantages' mean:
        # nothing to be relative to but the advantages
        scale = 1e-6 * max(map(abs, event["advantages"]))
        compare.close("p4 policy_loss", said["policy_loss"], event["policy_loss"], scale=scale)
        compare.close("p4 policy_grad_norm", said["policy_gradient_norm"],
                      event["policy_grad_norm_before_clip"], scale=scale)
        compare.close("p4 student gradient at its step", episode.gradient_norm.item(),
                      event["student_grad_norm_at_optimizer_step"])
        self.after = norms(state["student"].module), norms(state["policy"].module)
        compare.weights("p4 weight norms", self.after[0], event["student2_param_l2_after_step"])
        compare.weights("p4 policy weight norms", self.after[1], event["policy_param_l2_after_step"])


def rates(trained):
    """Learning rates that the optimizer works with."""
    return {group["lr"] for group in trained.optimizer.param_groups}


def theirs(module, prefix=""):
    """{the trace's name: tensor} of the state of a Model, of Heads or of a Policy."""
    names = {}
    for name, value in module.state_dict().items():
        name = prefix + name
        if name.startswith("heads."):
            _, _, task, kind = name.split(".")
            name = f"output_heads.{task.lower()}.classifier.{kind}"
        elif name.startswith("linear."):
            name = name.replace("linear", "action_predictor")
        names[name.replace("encoder.body.", "encoder.")] = value
    return names


def norms(module, heads=None):
    tensors = theirs(module) | (theirs(heads, "heads.") if heads is not None else {})
    return {name: value.norm().item() for name, value in tensors.items()}


class Replay:
    """One case: models and data as the trace began, the phases, the comparison."""

    def __init__(self, folder):
        self.trace, self.compare = Trace(folder), Comparison()
        case = self.case = self.trace.case
        self.given = case["settings"]
        zero_grad = "none" if case["zero_grad_set_to_none"] else "zeros"  # which torch the case was made with
        self.protocol = replace(PROTOCOLS["released"], zero_grad=zero_grad)
        self.tasks = [protocol_task(find_task(name), PROTOCOLS["released"]) for name in case["task_order"]]
        self.case_names = {task.name: name for task, name in zip(self.tasks, case["task_order"])}
        self.main = self.tasks[case["task_order"].index(case["task"])].name
        for task in self.tasks:
            assert task.outputs == case["label_nums"][task.name.lower()]
        self.witness = Witness(self.trace, self.compare, self.case_names)

    def model(self, role, layers):
        config = BertConfig(**{**self.case["model_config"], "num_hidden_layers": layers})
        model = Model(Encoder(BertModel(config)), self.tasks, 0, role).double()
        model.heads.dropout.p = self.case["head_dropout"]
        stored = {
            self.ours(name): value.double()
            for name, value in self.trace.init.items()
            if name.startswith(role + ".")
        }
        missing, unexpected = model.load_state_dict(stored, strict=False)
        assert not unexpected and not missing, (missing, unexpected)
        return model

    def ours(self, name):
        """A stored tensor's name in our Model."""
        name = name.split(".", 1)[1]
        if name.startswith("encoder."):
            return f"encoder.body.{name[8:]}"
        if name.startswith("output_heads."):
            _, task, _, kind = name.split(".")
            return f"heads.linear.{find_task(task).name}.{kind}"
        return name

    def split(self, task, name, stored):
        data, key = self.trace.data, f"{self.case_names[task.name]}_{stored}"
        if f"{key}_input_ids" not in data:
            return None
        mask = data[f"{key}_attention_mask"].astype(bool)
        return Split(
            task=task,
            name=name,
            idx=list(range(len(mask))),
            where=[key] * len(mask),
            labels=torch.from_numpy(data[f"{key}_labels"]),
            input_ids=data[f"{key}_input_ids"][mask].astype(np.int32),
            token_type_ids=data[f"{key}_token_type_ids"][mask].astype(np.int8),
            offsets=np.concatenate([[0], np.cumsum(mask.sum(1))]),
            pad_ids=(self.case["special_tokens"]["PAD"], 0),
            pad_to=mask.shape[1] if self.protocol.padding == "max_length" else None,
            truncated=0,
            checksum=key,
            notes={},
        )

    def settings(self, kind, **values):
        values |= {name: value for name, value in asdict(self.protocol).items()
                   if name in kind.__dataclass_fields__}
        return kind(weight_decay=0.01, max_grad_norm=self.given["max_grad_norm"],
                    head_dropout=self.case["head_dropout"], seed=0, select_on="dev", eval_batch_size=8,
                    device="cpu", precision="fp32", **values)

    def streams(self, phase):
        return TraceStreams(self.trace, phase, self.case_names)

    def run(self):
        """All phases; returns the Comparison."""
        given, main = self.given, next(task for task in self.tasks if task.name == self.main)
        train, dev, test = (self.split(main, name, name) for name in ("train", "dev", "test"))
        quiz = {task.name: self.split(task, "quiz", "held") for task in self.tasks}
        witness = self.witness

        def evaluator(predict_split):
            return Evaluator(predict_split, {"dev": dev}, "dev", self.protocol.selection)

        def predictor(model):
            return lambda split: predict(model, split, 8, torch.device("cpu"))

        teacher = self.model("teacher", self.case["model_config"]["num_hidden_layers"])
        student = self.model("student", self.case["student_num_hidden_layers"])
        teacher_settings = self.settings(
            Training,
            epochs=given["teacher_epochs"],
            batch_size=given["train_dataloader_size"],
            learning_rate=given["teacher_learning_rate"],
        )
        best = train_teacher(teacher, train, teacher_settings, evaluator(predictor(teacher)),
                             self.streams("teacher"), witness, witness)
        end = self.trace.of("p1_end")[0]
        witness.compare_lengths("p1")
        self.compare.equal("p1 kept epoch", best.index - 1, end["best_epoch"])
        self.compare_dev("teacher, kept", predictor(teacher), dev, end)
        self.compare.weights("p1 weight norms", norms(teacher), end["teacher_param_l2"])

        meta_teacher = copy.deepcopy(teacher.heads)
        teacher_outputs = FrozenEncoder(teacher.encoder, 8, torch.device("cpu"))
        student_outputs = FrozenEncoder(student.encoder, 8, torch.device("cpu"))

        def predict_meta_teacher(split):
            return predict_heads(meta_teacher, teacher_outputs, split)

        kd_settings = self.settings(
            Distillation,
            epochs=given["epochs"],
            batch_size=given["train_dataloader_size"],
            learning_rate=given["learning_rate"],
            nlayers=self.case["student_num_hidden_layers"],
            temperature=given["temperature"],
            alpha=given["alpha"],
            beta=given["beta"],
            compared=list(range(1, self.case["student_num_hidden_layers"])),
        )
        meta_settings = self.settings(
            MetaTraining,
            epochs=given["epochs"],
            batch_size=given["val_dataloader_size"],
            learning_rate=given["meta_learning_rate"],
            loss="com" if given["use_comp_loss"] else "col",
        )
        kd = distillation_loop("kd", student, meta_teacher, teacher_outputs, train, kd_settings,
                               evaluator(predictor(student)), self.streams("kd"), witness)
        meta = meta_teacher_loop(meta_teacher, teacher_outputs, student_outputs, quiz[self.main],
                                 meta_settings, evaluator(predict_meta_teacher), self.streams("meta_teacher"),
                                 witness, student_moves=True)
        kd_best, meta_best = run_epochs(kd, meta, saver=witness)
        start = self.trace.of("p4_start")[0]
        witness.compare_lengths("p2")
        witness.compare_lengths("p3")
        self.compare.equal("p2 kept epoch", kd_best.index - 1, start["reloaded_student_epoch"])
        self.compare.equal("p3 kept epoch", meta_best.index - 1, start["reloaded_meta_teacher_epoch"])
        self.compare.weights("p2 weight norms", norms(student), start["student_param_l2"])
        self.compare.weights("p3 weight norms", norms(teacher, meta_teacher), start["meta_teacher_param_l2"])
        closing = {
            name: self.trace.of("closing_evaluation", model=name)[0]
            for name in ("kd_student", "meta_teacher", "final_student")
        }
        self.compare_dev("kd student, kept", predictor(student), dev, closing["kd_student"])
        self.compare_dev("meta-teacher, kept", predict_meta_teacher, dev, closing["meta_teacher"])
        self.compare_test("teacher", predictor(teacher), test)
        self.compare_test("kd_student", predictor(student), test)
        self.compare_test("meta_teacher", predict_meta_teacher, test)

        policy = Policy(self.case["d_model"], len(self.tasks), 0).double()
        policy.load_state_dict({f"linear.{kind}": self.trace.init[f"policy.action_predictor.{kind}"].double()
                                for kind in ("weight", "bias")})
        curriculum_settings = self.settings(
            CurriculumTraining,
            epochs=given["num_episodes"],
            batch_size=given["val_dataloader_size"],
            learning_rate=given["learning_rate"],
            policy_learning_rate=given["meta_learning_rate"],
            reward=given["reward_function"],
            curriculum="policy",
        )
        best = train_curriculum(student, meta_teacher, policy, teacher_outputs, quiz, self.main,
                                curriculum_settings, evaluator(predictor(student)), self.streams("mpdistil"),
                                witness, witness)
        last = self.trace.of("final_norms")[0]
        witness.compare_lengths("p4")
        self.compare.weights("final norms, last student", witness.after[0], last["student2_last"])
        self.compare.weights("final norms, policy", witness.after[1], last["policy"])
        self.compare.equal("p4 kept episode", best.index - 1, last["best_episode"])
        self.compare_dev("final student", predictor(student), dev, closing["final_student"])
        self.compare_test("final_student", predictor(student), test)
        final = {"student": theirs(student), "policy": theirs(policy),
                 "meta_teacher": theirs(meta_teacher, "heads.")}
        ours = {f"{model}.{name}": value for model, tensors in final.items()
                for name, value in tensors.items()}
        self.compare.weights("final weights", ours, self.trace.final)
        return self.compare

    def compare_dev(self, what, predict_split, dev, event):
        logits = predict_split(dev)
        self.compare.equal(f"dev predictions, {what}", logits.argmax(-1).tolist(), event["dev_predictions"])

    def compare_test(self, name, predict_split, test):
        self.compare.equal("test predictions", predict_split(test).argmax(-1).tolist(),
                           self.trace.of("test_predictions", model=name)[0]["predictions"])
