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
    found, shuffled = analysis.share_of_actions(left, np.array([[0, 1], [1, 0]]))
    assert found == pytest.approx(1.0) and shuffled < 1  # action 0 always has -1, action 1 always +1
    assert analysis.share_of_actions(left, np.zeros((2, 2), dtype=int))[0] == pytest.approx(0.0)
    nothing = np.zeros((2, 2))
    assert math.isnan(analysis.without_position(nothing)[1])
    assert math.isnan(analysis.share_of_actions(nothing, np.zeros((2, 2), dtype=int))[0])


def test_what_drifts_is_not_taken_for_an_action():
    """Advantages that fall while one task is picked more and more often say nothing of that task."""
    random, episodes = np.random.default_rng(0), 200
    p_main = np.linspace(0.17, 0.9, episodes)[:, None]
    credited = np.where(random.random((episodes, 4)) < p_main, 0, random.integers(1, 3, (episodes, 4)))
    advantages = np.linspace(0.02, -0.02, episodes)[:, None] + 0.01 * random.normal(size=(episodes, 4))
    left = analysis.without_position(advantages)[0]
    found, shuffled = analysis.share_of_actions(left, credited)
    assert found < 3 * shuffled + 0.005
    mean, low, high, _ = analysis.advantages_by_task(left, credited, TASKS)["CB"]
    assert low < 0 < high
    # an effect of the action is still found
    left = analysis.without_position(advantages + 0.01 * (credited == 0))[0]
    found, shuffled = analysis.share_of_actions(left, credited)
    assert found > 5 * shuffled and analysis.advantages_by_task(left, credited, TASKS)["CB"][1] > 0


def test_advantages_by_task_by_hand():
    left, credited = np.array([[1.0, 2.0], [3.0, 10.0]]), np.array([[0, 0], [0, 1]])
    found = analysis.advantages_by_task(left, credited, TASKS)
    mean, low, high, steps = found["CB"]
    assert (mean, steps) == (2.0, 3) and low == pytest.approx(2 - 4.302653 / math.sqrt(3)) and high > mean
    assert found["RTE"][0] == 10 and math.isnan(found["RTE"][1]) and found["WSC"] is None


def test_a_replay_tells_learning_from_chance():
    """A staircase moves the logits whatever the actions were; an effect of the action moves them further."""
    for effect, learns in ((0.0, False), (2.0, True)):
        states, advantages, credited = made_up(effect=effect)
        left = analysis.without_position(advantages)[0] if learns else advantages
        found = analysis.replays_of(states, left, 3, settings(), credited, count=39, seed=0)
        assert (found["p"] <= 0.05) == learns, found
        low, high = found["random"][1:]
        assert 0 < low <= found["random"][0] <= high and found["log_pis"].shape == (61, 3)
    last = np.exp(found["log_pis"][-1])
    assert last[0] > 0.5 and last.sum() == pytest.approx(1)


def test_a_replay_is_deterministic_and_leaves_torch_alone():
    states, advantages, _ = made_up()
    before = torch.get_rng_state()
    one, other = (analysis.replay(states, advantages, 3, settings(),
                                  generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert (one == other).all() and (torch.get_rng_state() == before).all()
    assert not (one == analysis.replay(states, advantages, 3, settings(seed=2),
                                       generator=torch.Generator().manual_seed(3))).all()


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
        # a state stands for the whole episode, in which the student moves it a little
        assert record["moved"]["away"] < 5e-4 and 0 < record["moved"]["p"] <= 1
        assert len(record["p_main"]) == 6 and record["steps"] == 3
        assert sum(record["last"]) == pytest.approx(1, abs=1e-5)
        assert record["last"][TASKS.index("CB")] == pytest.approx(record["p_main"][-1], abs=1e-6)
    assert learning["choices"] == ["paper", "advantage=step_mean", "reward_of=improvement", "col", "real"]
    assert learning["rate"] == 5e-2 and policy["rate"] == 1e-3
    assert learning["moved"]["moved"] > policy["moved"]["moved"] > 0
    assert chance["moved"] is None and set(chance["p_main"]) == {round(1 / 3, 6)}
    assert sum(found[3] for found in chance["by_task"].values() if found) == 6 * 3
    text = page.read_text()
    assert "cb/policy" in text and "| cb/chance |" in text and text.count("\n| cb/") == 6
    assert text.count("\n| CB, paper, ") == 3
    assert "\n| CB, paper, col, real, uniform | 1 | - | 0.333, 0.333 (0.333) | - |" in text
    assert figure.read_text().startswith("<?xml")
    # and the page again from the records alone
    again = tmp_path / "again.md"
    assert policy_report.main([str(compact), "--output", str(again)]) == 0
    assert again.read_text() == text
    # a folder of runs is all of them; what else lies there is left out
    capsys.readouterr()
    assert policy_report.main([str(runs[0].parent), "--replays", "1"]) == 0
    assert capsys.readouterr().out.count("\n| cb/") == 6


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
