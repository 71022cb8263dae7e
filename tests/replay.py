"""Replays a trace of the authors' released code with this project's own phases, and compares every figure.

A case folder holds case.json (fields explained there), trace.json, data.npz, init.safetensors and
final.safetensors. Batch orders and actions are taken from the trace; everything else is computed by the
functions and loops that the command line runs, with the protocol `released`.
"""
import contextlib
import copy
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

import curriculum
import meta_policy
from arguments import PROTOCOLS
from curriculum import CurriculumTraining, Policy, train_curriculum
from data_utils import RandomStreams, Split
from meta_policy import Distillation, MetaTraining, Selection, Training
from models import Encoder, FrozenEncoder, Model, predict, predict_heads
from tasks import find_task, protocol_task

# the second for attention key biases, whose gradient is zero in exact arithmetic
RELATIVE, ABSOLUTE = 1e-8, 1e-10


class Mismatch(AssertionError):
    """The first figure that differs."""


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
        for name in ours.keys() & theirs.keys():
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
        self.init, self.final = load_file(folder / "init.safetensors"), load_file(
            folder / "final.safetensors"
        )
        self.data = np.load(folder / "data.npz")

    def of(self, kind, **where):
        return [
            event
            for event in self.events[kind]
            if all(event.get(key) == value for key, value in where.items())
        ]


class TraceDraws(RandomStreams):
    """RandomStreams that repeat a trace's batch orders and actions."""

    def __init__(self, trace, phase, case_names):
        """case_names: our name of a task -> the trace's."""
        names = {name: number for number, name in enumerate(case_names.values())}
        self.case_names, self.held = case_names, trace.of("held_batches")[0]["batches"]
        steps = trace.of(
            {"teacher": "p1_step", "kd": "p2_step", "meta_teacher": "p3_step", "mpdistil": "p4_step"}[phase]
        )
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


class Recorder:
    """The log that the phases write to, and, while `watching`, the figures of single steps before they are
    averaged."""

    def __init__(self):
        self.events, self.trajectories, self.steps, self.rewards, self.states, self.applied = (
            [],
            [],
            [],
            [],
            [],
            [],
        )

    def event(self, **values):
        self.events.append(values)

    def trajectory(self, **values):
        self.trajectories.append(values)

    @contextlib.contextmanager
    def progress(self, phase, total):
        class Bar:
            def update(self):
                pass

            def set_postfix(self, **values):
                pass
        yield Bar()

    @contextlib.contextmanager
    def watching(self):
        means, state_of = meta_policy.mean_figures, curriculum.curriculum_state
        apply, rewards = curriculum.apply_gradients, curriculum.REWARDS

        def mean_figures(steps, where, rate):
            self.steps.append(
                (where, [{name: value.item() for name, value in step.items()} for step in steps], rate)
            )
            return means(steps, where, rate)

        def curriculum_state(*args):
            state = state_of(*args)
            self.states.append(state.norm().item())
            return state

        def apply_gradients(optimizer, settings):
            gradients = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            self.applied.append(torch.stack([g.norm() for g in gradients]).norm().item())
            apply(optimizer, settings)

        def watched(reward_of):
            def reward(p_student, p_teacher, size, dtype):
                value = reward_of(p_student, p_teacher, size, dtype)
                self.rewards.append((p_student.tolist(), p_teacher.tolist(), value))
                return value
            return reward

        meta_policy.mean_figures = curriculum.mean_figures = mean_figures
        curriculum.curriculum_state, curriculum.apply_gradients = curriculum_state, apply_gradients
        curriculum.REWARDS = {name: watched(function) for name, function in rewards.items()}
        try:
            yield
        finally:
            meta_policy.mean_figures = curriculum.mean_figures = means
            curriculum.curriculum_state, curriculum.apply_gradients, curriculum.REWARDS = (
                state_of,
                apply,
                rewards,
            )


class Replay:
    """One case: models and data as the trace began, the phases, the comparison."""

    def __init__(self, folder, protocol=PROTOCOLS["released"]):
        self.trace, self.compare, self.log = Trace(folder), Comparison(), Recorder()
        case = self.case = self.trace.case
        self.given = case["settings"]
        self.protocol = replace(
            protocol,
            zero_grad=(
                protocol.zero_grad
                if protocol != PROTOCOLS["released"]
                else "none" if case["zero_grad_set_to_none"] else "zeros"
            ),
        )
        self.tasks = [protocol_task(find_task(name), PROTOCOLS["released"]) for name in case["task_order"]]
        self.case_names = {task.name: name for task, name in zip(self.tasks, case["task_order"])}
        self.main = self.tasks[case["task_order"].index(case["task"])].name
        for task in self.tasks:
            assert task.outputs == case["label_nums"][task.name.lower()]

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

    def theirs(self, module, prefix=""):
        """{the trace's name: tensor} of a Model's or Heads' state."""
        names = {}
        for name, value in module.state_dict().items():
            name = prefix + name
            if name.startswith("heads."):
                _, _, task, kind = name.split(".")
                name = f"output_heads.{task.lower()}.classifier.{kind}"
            names[name.replace("encoder.body.", "encoder.")] = value
        return names

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
        choices = {
            f.name: asdict(self.protocol)[f.name] for f in fields(kind) if f.name in asdict(self.protocol)
        }
        return kind(
            **{
                "weight_decay": 0.01,
                "max_grad_norm": self.given["max_grad_norm"],
                "seed": 0,
                "select_on": "dev",
                "eval_batch_size": 8,
                "device": "cpu",
                "precision": "fp32",
                **choices,
                **values,
            }
        )

    def draws(self, phase):
        return TraceDraws(self.trace, phase, self.case_names)

    def run(self):
        """All phases; returns the Comparison."""
        with self.log.watching():
            self.compute()
        return self.compare

    def compute(self):
        given, main = self.given, next(task for task in self.tasks if task.name == self.main)
        train, dev, test = (self.split(main, name, name) for name in ("train", "dev", "test"))
        quiz = {task.name: self.split(task, "quiz", "held") for task in self.tasks}
        main_quiz = quiz[self.main]

        def selection(predict_split):
            return Selection(predict_split, {"dev": dev}, "dev", self.protocol.selection)

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
        best = meta_policy.train_teacher(
            teacher, train, teacher_settings, selection(predictor(teacher)), self.draws("teacher"), self.log
        )
        end = self.trace.of("p1_end")[0]
        self.steps("teacher", "p1", {"loss": "loss", "gradient_norm": "grad_norm_before_clip"})
        self.compare.equal("p1 kept epoch", best.index - 1, end["best_epoch"])
        self.compare_dev("teacher, kept", predictor(teacher), dev, end)
        self.compare.weights("p1 weight norms", self.norms(teacher), end["teacher_param_l2"])

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
        )
        meta_settings = self.settings(
            MetaTraining,
            epochs=given["epochs"],
            batch_size=given["val_dataloader_size"],
            learning_rate=given["meta_learning_rate"],
            loss="com" if given["use_comp_loss"] else "col",
        )
        kd = meta_policy.distillation_epochs("kd", student, meta_teacher, teacher_outputs, train, kd_settings,
                                             selection(predictor(student)), self.draws("kd"), self.log)
        meta = meta_policy.meta_teacher_epochs(
            meta_teacher,
            teacher_outputs,
            student_outputs,
            main_quiz,
            meta_settings,
            selection(predict_meta_teacher),
            self.draws("meta_teacher"),
            self.log,
            student_moves=True,
        )
        kd_best, meta_best = meta_policy.alternate_phases(kd, meta, self.log)
        start = self.trace.of("p4_start")[0]
        self.steps(
            "kd",
            "p2",
            {
                "ce": "ce",
                "soft": "soft",
                "pkd": "pkd",
                "loss": "total",
                "gradient_norm": "grad_norm_before_clip",
            },
        )
        self.steps(
            "meta_teacher",
            "p3",
            {
                "ce_teacher": "ce_hT",
                "ce_student": "ce_hS",
                "p_teacher": "mean_p_y_hT",
                "p_student": "mean_p_y_hS",
                "loss": "total",
                "gradient_norm": "grad_norm_before_clip",
            },
        )
        self.compare.equal("p2 kept epoch", kd_best.index - 1, start["reloaded_student_epoch"])
        self.compare.equal("p3 kept epoch", meta_best.index - 1, start["reloaded_meta_teacher_epoch"])
        self.compare.weights("p2 weight norms", self.norms(student), start["student_param_l2"])
        self.compare.weights(
            "p3 weight norms", self.norms(teacher, meta_teacher), start["meta_teacher_param_l2"]
        )
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
        self.watch_episodes(student, policy)
        curriculum_settings = self.settings(
            CurriculumTraining,
            epochs=given["num_episodes"],
            batch_size=given["val_dataloader_size"],
            learning_rate=given["learning_rate"],
            policy_learning_rate=given["meta_learning_rate"],
            reward=given["reward_function"],
            curriculum="policy",
        )
        best = train_curriculum(
            student,
            meta_teacher,
            policy,
            teacher_outputs,
            quiz,
            self.main,
            curriculum_settings,
            selection(predictor(student)),
            self.draws("mpdistil"),
            self.log,
        )
        self.compare_episodes()
        self.compare.equal("p4 kept episode", best.index - 1, self.trace.of("final_norms")[0]["best_episode"])
        self.compare_dev("final student", predictor(student), dev, closing["final_student"])
        self.compare_test("final_student", predictor(student), test)
        final = {"student": self.theirs(student), "policy": {name.replace("linear", "action_predictor"): value
                                                             for name, value in policy.state_dict().items()},
                 "meta_teacher": self.theirs(meta_teacher, "heads.")}
        ours = {
            f"{model}.{name}": value.numpy()
            for model, tensors in final.items()
            for name, value in tensors.items()
        }
        self.compare.weights(
            "final weights", ours, {name: value.numpy() for name, value in self.trace.final.items()}
        )

    def norms(self, model, heads=None):
        tensors = self.theirs(model)
        if heads is not None:
            tensors |= self.theirs(heads, "heads.")
        return {name: value.norm().item() for name, value in tensors.items()}

    def compare_dev(self, what, predict_split, dev, event):
        logits = predict_split(dev)
        self.compare.equal(f"dev predictions, {what}", logits.argmax(-1).tolist(), event["dev_predictions"])

    def compare_test(self, name, predict_split, test):
        self.compare.equal("test predictions", predict_split(test).argmax(-1).tolist(),
                           self.trace.of("test_predictions", model=name)[0]["predictions"])

    def steps(self, phase, prefix, names):
        """Single steps and epochs of phases 1 to 3."""
        recorded = [
            step
            for where, steps, _ in self.log.steps
            if where.startswith(f"phase {phase},")
            for step in steps
        ]
        rates = [
            rate
            for where, steps, rate in self.log.steps
            if where.startswith(f"phase {phase},")
            for _ in steps
        ]
        theirs = self.trace.of(f"{prefix}_step")
        self.compare.equal(f"{prefix} number of steps", len(recorded), len(theirs))
        for ours, rate, event in zip(recorded, rates, theirs):
            self.compare.equal(f"{prefix} learning rate", rate, event["lr"])
            for mine, name in names.items():
                if name in event:
                    self.compare.close(f"{prefix} {name}", ours[mine], event[name])
        for ours, event in zip(
            [e for e in self.log.events if e["phase"] == phase], self.trace.of(f"{prefix}_epoch")
        ):
            self.epoch(prefix, ours, event)

    def epoch(self, prefix, ours, event):
        dev, metrics = ours["scores"]["dev"], event["dev_metrics"]
        self.compare.close(f"{prefix} dev accuracy", dev["accuracy"], metrics["acc"])
        if "f1" in metrics:
            self.compare.close(f"{prefix} dev f1", dev["f1"], metrics["f1"])
        self.compare.close(f"{prefix} dev loss", dev["loss"], metrics["dev_loss"])
        self.compare.equal(f"{prefix} kept", ours["best"], event["was_best"])

    def watch_episodes(self, student, policy):
        """Record weight norms after each episode's update: when the log hears of the episode."""
        self.after, event = [], self.log.event

        def heard(**values):
            if values["phase"] == "mpdistil":
                self.after.append(
                    (
                        self.norms(student),
                        {
                            name.replace("linear", "action_predictor"): value.norm().item()
                            for name, value in policy.state_dict().items()
                        },
                    )
                )
            event(**values)
        self.log.event = heard

    def compare_episodes(self):
        compare, log = self.compare, self.log
        recorded = [
            step
            for where, steps, _ in log.steps
            if where.startswith("phase mpdistil") and "ce" in steps[0]
            for step in steps
        ]
        size = self.case["sizes"][f"{self.case['task']}_held"]
        events, episodes = [e for e in log.events if e["phase"] == "mpdistil"], self.trace.of("p4_episode")
        probabilities = [row for line in log.trajectories for row in line["probabilities"]]
        credited = [name for line in log.trajectories for name in line["credited"]]
        used = [name for line in log.trajectories for name in line["actions"]]
        steps = self.trace.of("p4_step")
        compare.equal("p4 number of steps", len(recorded), len(steps))
        compare.equal("p4 number of states", len(log.states), len(episodes))
        for n, (ours, step) in enumerate(zip(recorded, steps)):
            for mine, name in {
                "ce": "ce",
                "p_student": "mean_p_S_y",
                "p_meta_teacher": "mean_p_T2_y_hS",
                "loss": "loss",
                "gradient_norm": "accumulated_grad_norm_before_clip",
            }.items():
                compare.close(f"p4 {name}", ours[mine], step[name])
            compare.close("p4 state_l2", log.states[step["episode"]], step["state_l2"])
            p_student, p_teacher, reward = log.rewards[n]
            compare.close("p4 p_S_y", p_student, step["p_S_y"])
            compare.close("p4 p_T2_y", p_teacher, step["p_T2_y"])
            compare.close("p4 reward", reward.item(), float(np.float32(step["reward"]) / np.float32(size)))
            compare.close("p4 action_probs", probabilities[n], step["action_probs"])
            compare.equal("p4 actions", (self.case_names[used[n]], self.case_names[credited[n]]),
                          (step["current_action"], step["next_action"]))
        for n, (ours, event) in enumerate(zip(events, episodes)):
            self.epoch("p4", ours, event)
            # the trace divides the float32 sum, we sum the divided rewards: the same up to float32's rounding
            # of the terms
            rewards = log.trajectories[n]["rewards"]
            rounding = len(rewards) * np.finfo(np.float32).eps * sum(map(abs, rewards))
            compare.equal(
                "p4 total_rewards (float32)", abs(ours["reward"] - event["total_rewards"]) <= rounding, True
            )
            compare.close("p4 advantages", log.trajectories[n]["advantages"], event["advantages"])
            # where one action was taken throughout, these two are what rounding left of the advantages' mean:
            # nothing to be
            # relative to but the advantages
            scale = 1e-6 * max(map(abs, event["advantages"]))
            compare.close("p4 policy_loss", ours["policy_loss"], event["policy_loss"], scale=scale)
            compare.close(
                "p4 policy_grad_norm",
                ours["policy_gradient_norm"],
                event["policy_grad_norm_before_clip"],
                scale=scale,
            )
            student_norms, policy_norms = self.after[n]
            compare.weights("p4 weight norms", student_norms, event["student2_param_l2_after_step"])
            compare.weights("p4 policy weight norms", policy_norms, event["policy_param_l2_after_step"])
        compare.close("p4 student gradient at its step", log.applied[1::2],
                      [event["student_grad_norm_at_optimizer_step"] for event in episodes])
        norms = self.trace.of("final_norms")[0]
        compare.weights("final norms, last student", self.after[-1][0], norms["student2_last"])
        compare.weights("final norms, policy", self.after[-1][1], norms["policy"])
