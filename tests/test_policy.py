"""What scripts/policy_report.py says of what a policy learnt."""
import json
import math

import numpy as np
import pytest
import torch

from lib import policy_analysis as analysis

import policy_report
from conftest import read_lines

TASKS = ["CB", "RTE", "WSC"]


def settings(rate=1e-2, seed=1):
    return analysis.SimpleNamespace(seed=seed, policy_learning_rate=rate, weight_decay=0.01,
                                    max_grad_norm=1.0, weight_decay_on="matrices", zero_grad="none")


def made_up(episodes=60, steps=4, effect=0.0, seed=0, hidden=8):
    """(states, advantages, credited) of actions by chance, the first of which earns more by `effect`."""
    random = np.random.default_rng(seed)
    credited = random.integers(0, 3, size=(episodes, steps))
    staircase = np.linspace(1, -1, steps)
    noise = 0.1 * random.normal(size=(episodes, steps))
    state = np.repeat(random.normal(size=(1, hidden)), episodes, axis=0)
    return state, staircase + noise + effect * (credited == 0), credited


def test_movement_by_hand():
    assert analysis.movement([0.0, 0.0], [1.0, 1.0]) == 0  # a constant is no movement
    assert analysis.movement([0.0, 0.0], [1.0, -1.0]) == pytest.approx(1.0)
    assert analysis.movement([5.0, 5.0, 5.0], [6.0, 5.0, 4.0]) == pytest.approx(math.sqrt(2 / 3))


def test_what_position_and_action_explain_by_hand():
    advantages = np.array([[2.0, -2.0], [4.0, -4.0]])
    left, share = analysis.without_position(advantages)
    assert left.tolist() == [[-1.0, 1.0], [1.0, -1.0]] and share == pytest.approx(1 - 4 / 40)
    # a level that all steps have is no matter of position
    assert analysis.without_position(advantages + 7)[1] == pytest.approx(share)
    # action 0 always has -1, action 1 always +1
    assert analysis.share_of_actions(left, np.array([[0, 1], [1, 0]])) == pytest.approx(1.0)
    assert analysis.share_of_actions(left, np.zeros((2, 2), dtype=int)) == pytest.approx(0.0)
    nothing = np.zeros((2, 2))
    assert math.isnan(analysis.without_position(nothing)[1])
    assert math.isnan(analysis.share_of_actions(nothing, np.zeros((2, 2), dtype=int)))


def test_what_a_task_adds_by_hand():
    left, actions = np.array([[1.0, 3.0], [2.0, 0.0]]), np.array([[0, 0], [1, 0]])
    log_pis = np.log([[0.5, 0.5], [0.25, 0.75]])
    first = (0.5 * 1 + 0.5 * 3 - 0.25 * 2 + 0.75 * 0) / (2 * (0.25 + 0.1875))
    found = analysis.effects_of(left, actions, log_pis)
    assert found == pytest.approx([first, -first])
    settled = analysis.effects_of(left, np.zeros((2, 2), dtype=int), np.array([[0.0, -np.inf]] * 2))
    assert np.isnan(settled).all()  # no pick was left to chance


def test_a_policy_that_has_settled_hides_no_effect():
    """The mean advantage of a task that is picked nine times of ten is near 0, its effect is not."""
    random = np.random.default_rng(0)
    pi = np.array([0.9, 0.05, 0.05])
    actions = random.choice(3, size=(2000, 4), p=pi)
    left = analysis.without_position(0.1 * random.normal(size=actions.shape) + (actions == 0))[0]
    assert abs(left[actions == 0].mean()) < 0.15
    found = analysis.effects_of(left, actions, np.tile(np.log(pi), (2000, 1)))
    assert found[0] == pytest.approx(1, abs=0.1)


def test_p_by_hand():
    found = analysis.compare_with_chance([2.0, -3.0], [[1.0, 0.0], [2.0, 1.0], [3.0, -4.0]])
    assert found["above"] == [3 / 4, 3 / 4] and found["apart"] == [3 / 4, 2 / 4]
    assert found["value"] == [2.0, -3.0] and found["low"][0] == pytest.approx(1.05)


def drifting(seed, steps=3, effect=0.0):
    """Advantages of 40 episodes that rise fast while a policy at a high rate moves: (states, advantages,
    credited, settings)."""
    random, episodes = np.random.default_rng(seed), 40
    states = np.repeat(random.normal(size=(1, 8)), episodes, axis=0)
    rising = np.linspace(0, 1, episodes)[:, None] ** 3 + 0.05 * random.normal(size=(episodes, steps))
    own = settings(rate=0.05, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    credited = analysis.replay(states, rising, 3, own, generator=generator)[1]
    if effect:  # what is picked now is rewarded now: the run's own training would pick otherwise, a little
        rising = rising + effect * (credited == 0)
    return states, rising, credited, own


def test_what_drifts_is_not_taken_for_an_action():
    """Where advantages and picks rise together within a block, chance alone gives p as it should be: of 14
    runs about one in ten has p at most 0.1 for the share and for the main task's effect."""
    p_values = {"share": [], "effects": []}
    for seed in range(14):
        states, advantages, credited, own = drifting(seed)
        found = analysis.learnt(states, advantages, 3, own, credited, 0, 19, seed)
        p_values["share"].append(found["share"]["above"])
        p_values["effects"].append(found["effects"]["apart"][0])
    for name, values in p_values.items():
        assert sum(p <= 0.1 for p in values) <= 4, (name, values)
        assert 0.3 < np.mean(values) < 0.75, (name, values)
    # an effect of the action is still found
    states, advantages, credited, own = drifting(0, effect=0.5)
    found = analysis.learnt(states, advantages, 3, own, credited, 0, 19, 0)
    assert found["share"]["above"] <= 0.1 and found["effects"]["apart"][0] <= 0.1
    assert found["effects"]["value"][0] > 0.2


def test_a_replay_tells_learning_from_chance():
    """A staircase moves the logits whatever the actions were; an effect of the action moves them further."""
    for effect, learns in ((0.0, False), (2.0, True)):
        states, advantages, credited = made_up(effect=effect)
        left = analysis.without_position(advantages)[0] if learns else advantages
        found = analysis.learnt(states, left, 3, settings(), credited, 0, count=39, seed=0)
        assert (found["moved"]["above"] <= 0.05) == learns, found
        assert (found["to_main"]["above"] <= 0.05) == learns, found
        assert 0 < found["moved"]["low"] <= found["moved"]["high"] and found["log_pis"].shape == (61, 3)
    last = np.exp(found["log_pis"][-1])
    assert last[0] > 0.5 and last.sum() == pytest.approx(1)


def test_a_replay_is_deterministic_and_leaves_torch_alone():
    states, advantages, _ = made_up()
    before = torch.get_rng_state()
    one, other = (analysis.replay(states, advantages, 3, settings(),
                                  generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert (one == other).all() and (torch.get_rng_state() == before).all()
    assert not (one == analysis.replay(states, advantages, 3, settings(seed=2),
                                       generator=torch.Generator().manual_seed(3))[0]).all()


@pytest.fixture(scope="module")
def runs(encoders, data_dir, tmp_path_factory):
    """Folders of a run as published, of one whose policy can learn, and of one by chance."""
    import main_superglue
    from arguments import parse_arguments
    from conftest import as_words
    root, folders = tmp_path_factory.mktemp("runs"), []
    for name, flags in (("policy", {}), ("chance", {"curriculum": "uniform"}), ("learning", {
            "set": ["advantage=step_mean", "reward_of=improvement"], "policy_learning_rate": 5e-2})):
        folder = root / "cb" / name
        words = as_words({"task": "CB", "data_dir": data_dir, "tasks": TASKS, "nlayers": 2,
                          "teacher_model": encoders["bert"], "teacher_epochs": 1, "epochs": 1,
                          "meta_epochs": 1, "num_episodes": 6, "val_dataloader_size": 2,
                          "max_seq_length": 40, "reward_function": "real", "learning_rate": 1e-3,
                          "output_dir": folder, **flags})
        assert main_superglue.main(parse_arguments(words)) == 0
        folders.append(folder)
    return folders


def test_the_replay_of_a_run_is_the_run(runs, tmp_path, capsys):
    """From the first weights, the states and the advantages it gives the probabilities that were logged."""
    compact, page, figure = (tmp_path / name for name in ("policy.jsonl", "page.md", "figure.svg"))
    words = [*map(str, runs), "--replays", "9", "--compact", str(compact), "--output", str(page), "--figure",
             str(figure)]
    assert policy_report.main(words) == 0, capsys.readouterr().err
    policy, chance, learning = read_lines(compact)
    for record in (policy, learning):
        assert 0 < record["learnt"]["moved"]["above"] <= 1 and len(record["learnt"]["effects"]["value"]) == 3
        assert len(record["p_main"]) == 6 and record["steps"] == 3
        assert sum(record["last"]) == pytest.approx(1, abs=1e-5)
        assert record["last"][TASKS.index("CB")] == pytest.approx(record["p_main"][-1], abs=1e-6)
    assert learning["choices"] == ["paper", "advantage=step_mean", "reward_of=improvement", "col", "real"]
    assert learning["rate"] == 5e-2 and policy["rate"] == 1e-3 and policy["settings"]["num_episodes"] == 6
    assert learning["learnt"]["moved"]["value"] > policy["learnt"]["moved"]["value"] > 0
    assert "moved" not in chance["learnt"] and set(chance["p_main"]) == {round(1 / 3, 6)}
    assert 0 < chance["learnt"]["share"]["above"] <= 1
    assert sum(chance["picks"]) == 6 * 3
    text = page.read_text()
    assert "cb/policy" in text and "| cb/chance |" in text and text.count("\n| cb/") == 6
    assert text.count("\n| CB, paper, ") == 3
    assert "\n| CB, paper, col, real, uniform | 1 | - | - | 0.333, 0.333 (0.333) | - |" in text
    assert "0 of 1" not in text and "give more --replays" in text  # of 9 replays none can have a p of .05
    assert figure.read_text().startswith("<?xml")
    # and the page again from the records alone
    again = tmp_path / "again.md"
    assert policy_report.main([str(compact), "--output", str(again)]) == 0
    assert again.read_text() == text
    # a folder of runs is all of them; what else lies there is left out
    capsys.readouterr()
    assert policy_report.main([str(runs[0].parent), "--replays", "1"]) == 0
    assert capsys.readouterr().out.count("\n| cb/") == 6


def test_runs_are_grouped_by_all_but_the_seed(runs, tmp_path, capsys):
    compact = tmp_path / "policy.jsonl"
    assert policy_report.main([str(runs[0]), "--replays", "1", "--compact", str(compact)]) == 0
    capsys.readouterr()
    record, = read_lines(compact)
    others = [{**record, "run": "b", "seed": 7},
              {**record, "run": "c", "settings": {**record["settings"], "num_episodes": 12}}]
    compact.write_text("".join(json.dumps(line) + "\n" for line in (record, *others)))
    assert policy_report.main([str(compact)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| CB, paper")]
    assert [line.split(" | ")[:2] for line in said] == [
        ["| CB, paper, col, real, rate 0.001, num_episodes 6", "2"],
        ["| CB, paper, col, real, rate 0.001, num_episodes 12", "1"]]
    assert policy_report.main([str(compact), str(runs[0]), "--replays", "1"]) == 2
    assert "seed 42 of these flags found twice" in capsys.readouterr().err


def test_what_is_said_of_runs():
    def record(seed, p, effect, effect_p, last):
        learnt = {name: {"value": 1.0, "low": 0.0, "high": 0.5, "above": p} for name in ("moved", "to_main")}
        by_task = {"value": [effect, 0.0], "low": [-1e-3, 0], "high": [1e-3, 0], "apart": [effect_p, 1.0]}
        return {"task": "CB", "tasks": ["CB", "RTE"], "seed": seed, "curriculum": "policy", "rate": 0.01,
                "choices": ["paper", "col", "real"], "settings": {}, "p_main": [0.5, last],
                "last": [last, 1 - last], "learnt": {**learnt, "effects": by_task}}

    records = [record(1, 0.05, 0.002, 0.01, 0.9), record(2, 0.051, -0.002, 0.04, 0.2),
               record(3, 0.01, 0.002, 0.2, 0.8)]
    (name, group), = policy_report.groups_of(records).items()
    assert policy_report.said_of(name, group) == (
        "CB, paper, col, real, rate 0.01: the policy moved further than by chance in 2 of 3 runs, toward the"
        " main task in 2; p(main task) was 0.50 at first, 0.20 to 0.90 at the end; likeliest at the end: CB"
        " (2), RTE (1); picking the main task adds -0.00200 to +0.00200 to a step's advantage, more than by"
        " chance in 1 of 3 runs, less in 1.")


def test_what_a_report_cannot_use_is_refused(runs, tmp_path, capsys):
    import shutil
    folder = tmp_path / "cb" / "old"
    shutil.copytree(runs[0], folder)
    lines = read_lines(folder / "trajectories.jsonl")

    def said(changed):
        (folder / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
        assert policy_report.main([str(folder), "--replays", "3"]) == 2
        error = capsys.readouterr().err
        assert error.count("error: ") == 1
        return error

    assert "no state found; older code made it" in said(
        [{name: value for name, value in line.items() if name != "state"} for line in lines])
    assert "no finished run with episodes found" in said([]).splitlines()[-1]
    assert "differ from the logged ones" in said(
        [{**line, "advantages": [10 * value for value in line["advantages"][::-1]]} for line in lines])
    broken = tmp_path / "records.jsonl"
    broken.write_text('{"run": 1}\n')
    assert policy_report.main([str(broken)]) == 2
    assert "records.jsonl:1: not the record of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        policy_report.main([str(tmp_path / "nowhere")])
