"""The way of a run through a GPU, as far as it can be seen without one (pretend_cuda.py): that all goes
through, where the host waits, how much is launched, a kill. What needs a card stands in test_slow.py."""
import json
import os
import signal
import statistics
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import lib  # noqa: F401

import main_superglue
from bookkeeping import machine
from bookkeeping.errors import InputError
from bookkeeping.states import Saver, pack, put_back, unpack, weights_are_finite
from data_utils import Batch, batches_by_length, fetch, load_task
from families import make_family
from metrics import Best
from models import WIDE_MASK, load_model, wide_mask
from pretend_cuda import GPU, OnGPU, pretended
from tasks import TASKS


@pytest.mark.parametrize("flags", [
    {"undistilled": True, "kd_200": True, "precision": "bf16"},
    {"protocol": "released", "task": "COPA", "reward_function": "real", "use_comp_loss": True},
    {"precision": "tf32", "baselines": ["pkd_skip", "tinybert", "prokt", "metadistil", "theseus"]},
    {"set": ["reward_of=improvement", "advantage=step_mean", "meta_term=attached"],
     "nondeterministic": True}])
def test_the_whole_command(flags, command):
    with pretended():
        task = flags.pop("task", "CB")
        code, folder = command(task, nlayers=2, **{"device": "cuda", **flags})
    assert code == 0
    said = json.loads((folder / "environment.json").read_text())
    assert said["gpu"] == "pretended" and said["deterministic"] is ("nondeterministic" not in flags)
    assert json.loads((folder / "result.json").read_text())["rows"]["mpdistil"]["dev"]["total"] == 18


class Watched(Saver):
    """Notes what has been launched and waited for at every step."""
    seen = []

    def consider(self, state, at_end=False):
        name = self.folder.name.lstrip(".").split("-")[0].replace("state", "mpdistil")
        self.seen.append((name, at_end, self.counts.launches,
                          sum(self.counts.waits.values())))


def test_what_a_step_launches_and_waits_for(command, monkeypatch):
    """Waits: none, but phase 4's for its action, which was sent before the reward was computed. Launches: of
    a teacher of 4 layers, a student of 2; far more would be work that belongs before the loop. (Medians: the
    first batch of a split sends its tokens.)"""
    import bookkeeping.run_folder
    monkeypatch.setattr(bookkeeping.run_folder, "Saver", Watched)
    with pretended() as counts:
        Watched.counts, Watched.seen = counts, []
        code, _ = command(nlayers=2, device="cuda", undistilled=True, epochs=2, num_episodes=6,
                          tasks=["CB", "RTE"], kd_quiz=True, baselines=["theseus"])
    assert code == 0
    found = {}
    for before, after in zip(Watched.seen, Watched.seen[1:]):
        if before[0] == after[0] and not before[1] and not after[1]:  # from one step to the next
            found.setdefault(after[0], []).append((after[2] - before[2], after[3] - before[3]))
    launches, waits = ({phase: statistics.median(pair[place] for pair in pairs)
                        for phase, pairs in found.items()} for place in (0, 1))
    assert waits == {"teacher": 0, "student": 0, "kd": 0, "theseus": 0, "meta_teacher": 0,
                     "kd_quiz": 0, "mpdistil": 1}
    most_of = {"teacher": 345, "student": 212, "kd": 258, "meta_teacher": 60, "mpdistil": 285}
    for phase, most in most_of.items():
        assert most / 2 < launches[phase] <= most, (phase, launches[phase])


def test_a_run_that_is_ended_goes_on_with_the_same_bytes(command, monkeypatch):
    flags = dict(nlayers=2, device="cuda", epochs=2, num_episodes=3, save_seconds=0)
    with pretended():
        assert command(folder="whole/run", **flags)[0] == 0
    real, left = Saver.consider, [9]

    def ending(self, state, at_end=False):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, state, at_end)

    for steps in (10, 14):
        left[0] = steps
        monkeypatch.setattr(Saver, "consider", ending)
        with pretended():
            code, folder = command(folder="ended/run", **flags)
        assert code == 128 + signal.SIGTERM
    monkeypatch.setattr(Saver, "consider", real)
    with pretended():
        code, folder = command(folder="ended/run", **flags)
    assert code == 0 and "going on from" in (folder / "log.txt").read_text()
    whole = folder.parents[1] / "whole" / "run"
    for name in ("models/student/model.safetensors", "trajectories.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_batch_is_the_same_there(encoders, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    for name, padding in (("CB", "longest"), ("COPA", "max_length")):
        split = load_task(TASKS[name], data_dir, tokenizer, 60, 42, 4, ("train",), padding=padding)["train"]
        here = split.batch([5, 0, 17])
        with pretended() as counts:
            split.batch([1], "cuda")  # sends all tokens, once
            counts.begin()
            there = split.batch([5, 0, 17], "cuda")
            assert not counts.waits
        for field, expected in vars(here).items():
            found = getattr(there, field)
            assert isinstance(found, OnGPU) and found.device == GPU
            assert found.dtype == expected.dtype and torch.equal(found.inner, expected), field


def test_a_mask_that_nobody_has_to_ask(tmp_path):
    """The same bytes with either mask, forward and backward, for every family that gets the wide one."""
    known = {"BERT": "bert", "DistilBERT": "distilbert", "ELECTRA": "electra", "RoBERTa": "roberta",
             "XLM-R": "xlm-roberta"}
    assert sorted(known.values()) == sorted(WIDE_MASK)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    assert wide_mask(mask).shape == (2, 1, 7, 7)
    assert wide_mask(mask)[1, 0, 6].tolist() == [True] * 4 + [False] * 3
    for family in known:
        model = load_model(make_family(family, tmp_path / family), [TASKS["CB"]], 1, "teacher").eval()
        ids, found = torch.randint(5, 60, (2, 7)), []
        for given in (mask, wide_mask(mask)):
            model.zero_grad()
            out = model.encoder.body(input_ids=ids, attention_mask=given, output_hidden_states=True)
            states = torch.stack(out.hidden_states)[:, mask.bool()]
            states.square().sum().backward()
            found.append([states.detach(), *(weight.grad for weight in model.parameters()
                                             if weight.grad is not None)])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)), family


def test_batches_by_tokens(encoders, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    for name in ("CB", "COPA"):
        split = load_task(TASKS[name], data_dir, tokenizer, 60, 42, 4, ("train",))["train"]
        batches = batches_by_length(split, 8, tokens=200)
        assert sorted(np.concatenate(batches)) == list(range(len(split)))
        lengths = [split.lengths()[batch].max() * split.task.rows * len(batch) for batch in batches]
        assert max(lengths) <= 200 and max(map(len, batches)) <= 8 and min(map(len, batches[:-1])) >= 1
        # one more would have been too many
        for batch, follower in zip(batches, batches[1:]):
            longest = split.lengths()[batch].max() * split.task.rows
            assert len(batch) == 8 or longest * (len(batch) + 1) > 200, (batch, follower)
        assert len(batches_by_length(split, 8, tokens=1)) == len(split)  # one is always taken
        assert [list(batch) for batch in batches_by_length(split, 8, tokens=10 ** 6)] == [
            list(batch) for batch in batches_by_length(split, 8)]


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
     "out of memory on the GPU (20.00 MiB more were asked for)"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "out of memory on the GPU"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
     "out of memory on the GPU"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory:"
                  " you tried to allocate 4000000000000 bytes. Error code 12"),
     "out of memory on this machine (4000000000000 bytes more were asked for)")])
def test_no_memory_left_is_one_line(error, said, command, monkeypatch, capsys):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(main_superglue, "train_teacher", failing)
    code, folder = command()
    message = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and message.startswith(f"error: {said}; what was saved is whole")
    assert "--gradient_checkpointing" in message and "--train_dataloader_size" in message and folder.is_dir()
    command(gradient_checkpointing=True)
    assert "--gradient_checkpointing" not in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(RuntimeError, match="something else"):
        error = RuntimeError("something else")
        command(folder="other")


def test_a_kernel_that_is_not_deterministic_names_the_flag(command, monkeypatch, capsys):
    def failing(*_, **__):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set")

    monkeypatch.setattr(main_superglue, "train_teacher", failing)
    assert command()[0] == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --device cuda: cumsum_cuda_kernel has no kernel that gives the same bytes twice; with"
        " --nondeterministic and another --output_dir another kernel is used")


def test_what_is_not_deterministic_is_another_phase(command):
    """Its results are not another run's, on a GPU; on a CPU the flag changes nothing."""
    kept = {}
    for device in ("cuda", "cpu"):
        for flag in (False, True):
            with pretended() if device == "cuda" else nullcontext():
                code, folder = command(folder=f"{device}/{flag}", device=device, nondeterministic=flag,
                                       stop_after="teacher")
            assert code == 0
            kept[device, flag] = json.loads((folder / "result.json").read_text())["reused"]
    assert kept == {("cuda", False): [], ("cuda", True): [], ("cpu", False): [], ("cpu", True): ["teacher"]}


def test_what_is_not_finite_in_phase_4_is_said_there_too(command, capsys):
    """A GPU is not asked at every step; the next action's probabilities tell."""
    with pretended():
        code, _ = command(nlayers=2, device="cuda", stop_after="meta_teacher")
        assert code == 0
        code, _ = command(nlayers=2, device="cuda", folder="other", learning_rate=1e38, epochs=1,
                          stop_after="meta_teacher")
    assert code == 1 and "phase kd, epoch 1" in capsys.readouterr().err
    with pretended(), pytest.MonkeyPatch.context() as patch:
        real = main_superglue.train_curriculum

        def fast(*given, **named):
            return real(*given[:6], replace(given[6], learning_rate=1e38), *given[7:], **named)

        patch.setattr(main_superglue, "train_curriculum", fast)
        code, _ = command(nlayers=2, device="cuda")
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and error.startswith("error: phase mpdistil, episode 1, step") and "idx" in error, error


def test_eager_attention_keeps_its_mask(encoders):
    """It adds what it is given: of a wide bool mask 1 and 0."""
    model, seen = load_model(encoders["bert"], [TASKS["CB"]], 1, "teacher", 1).eval(), []
    model.encoder.body.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["attention_mask"].dim()), with_kwargs=True)
    with pretended():
        model = model.to("cuda")
        ids = torch.randint(5, 60, (2, 7)).to("cuda")
        batch = Batch(ids, torch.ones_like(ids), None, None)
        for kind in ("sdpa", "eager"):
            model.encoder.body.config._attn_implementation = kind
            model.encoder(batch)
    assert seen == [4, 2]


def test_which_precision_auto_is(monkeypatch, command):
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: True)
    assert machine.resolve_precision("auto", "auto") == machine.resolve_precision("cpu", "auto") == "bf16"
    assert machine.resolve_precision("cpu", "fp32") == "fp32"
    assert "--precision bf16 is faster" in machine.faster_precision(torch.device("cpu"), "fp32")
    assert machine.faster_precision(torch.device("cpu"), "bf16") is None
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: False)
    assert machine.resolve_precision("cpu", "auto") == "fp32"
    assert machine.faster_precision(torch.device("cpu"), "fp32") is None
    code, folder = command(precision="auto", stop_after="teacher")
    assert code == 0 and json.loads((folder / "args.json").read_text())["precision"] == "fp32"
    with pretended():
        assert {machine.resolve_precision(name, "auto") for name in ("auto", "cuda")} == {"bf16"}
        assert machine.resolve_precision("cpu", "auto") == "fp32"
        with pytest.MonkeyPatch.context() as older:
            older.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
            with pytest.raises(InputError, match="a GPU before Ampere, which has no TF32"):
                machine.resolve_device("cuda", "tf32")


@pytest.mark.parametrize("script", ["sweep", "tune"])
def test_a_sweep_names_its_precision(script, encoders, data_dir, tmp_path, capsys):
    import importlib
    words = ["--data_dir", str(data_dir), "--teacher_model", str(encoders["bert"]), "--nlayers", "2",
             "--precision", "auto", "--output_dir", str(tmp_path / "out"), "--val_dataloader_size", "4"]
    task = {"sweep": ["--tasks", "CB", "--rows", "kd"], "tune": ["--task", "CB"]}[script]
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(importlib.import_module(script).main([*task, *words]))
    assert stop.value.code not in (0, None)
    error = str(stop.value.code) + capsys.readouterr().err
    assert "--precision: auto found, expected fp32, tf32 or bf16" in error


def test_a_state_that_is_dear_is_saved_less_often(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("bookkeeping.states.time.perf_counter", lambda: clock[0])
    for seconds, expected in ((60, [60, 400, 740]), (0, list(range(20, 1000, 20)))):
        saver, saved = Saver(tmp_path / str(seconds), "x", seconds, print), []
        clock[0] = 0.0
        saver.restore({})
        real = saver.save

        def save(state, real=real, saved=saved):
            saved.append(clock[0])
            start = clock[0]
            monkeypatch.setattr("bookkeeping.states.sync", lambda path: clock.__setitem__(0, start + 6.4))
            real(state)
            clock[0] = start

        monkeypatch.setattr(saver, "save", save)
        for now in range(20, 1000, 20):
            clock[0] = float(now)
            saver.consider({"a": {"n": np.arange(2)}})
        assert saved == expected, seconds


def test_the_best_weights_stay_on_the_host():
    module = torch.nn.Linear(2, 2)
    best = Best()
    assert best.offer(0.5, 1, {}, module, {"dev": [1]})
    kept = {name: value.clone() for name, value in best.weights.items()}
    with torch.no_grad():
        module.weight.zero_()  # they are a copy
    tensors = {}
    packed, other = pack({"best": best}, "state", tensors), Best()
    with pretended():
        put_back({"best": other}, unpack(json.loads(json.dumps(packed)), tensors), "cuda")
        assert all(not isinstance(value, OnGPU) for value in other.weights.values())
    assert (other.score, other.index, other.answers) == (0.5, 1, {"dev": [1]})
    other.restore(module)
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())


def test_weights_that_are_not_finite_are_seen():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    assert weights_are_finite(module)
    with torch.no_grad():
        module[0].weight[0, 0] = 3e38  # finite, though its square is not
        assert weights_are_finite(module)
        for value in (float("inf"), float("-inf"), float("nan")):
            module[1].bias[1] = value
            assert not weights_are_finite(module)
            module[1].bias[1] = 0.0


def test_loading_a_model_leaves_a_gpus_generator_alone(encoders, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeded.append(seed))
    load_model(encoders["bert"], [TASKS["CB"]], 1, "teacher")
    assert not seeded


def test_what_is_fetched_is_waited_for_late():
    here = torch.arange(3.0)
    assert fetch(here)() is here
    with pretended() as counts:
        waiting = fetch(here.to("cuda") + 1)
        counts.begin()
        assert torch.equal(waiting(), here + 1) and list(counts.waits) == [("event", "data_utils.py:wait")]


def test_what_a_gpu_refuses_is_refused():
    """Else the tests above would see nothing."""
    with pretended():
        there = torch.ones(2).to("cuda")
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()
