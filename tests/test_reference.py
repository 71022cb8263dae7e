"""Whole runs of the command line against a plain implementation of `paper` (reference.py), every figure."""
import pytest

from agreement import agreement
from conftest import ROOT, make_encoder

# Rates and encoders at which scores go up and down, so that another kept epoch, reward or weight shows.
SMALL = dict(tasks=["CB", "COPA", "WSC"], nlayers=3, teacher_epochs=3, epochs=3, meta_epochs=3,
             num_episodes=4, val_dataloader_size=3, max_seq_length=40, teacher_learning_rate=1e-3,
             learning_rate=2e-3, meta_learning_rate=2e-2)
DROPOUT = dict(task="CB", teacher_model="moving")
TWO = dict(task="WSC", teacher_model="first", student_model="second", nlayers=2, alpha=0.3, beta=20,
           temperature=2, head_dropout=0, use_comp_loss=True)
READINGS = dict(task="CB", teacher_model="still", nlayers=2, head_dropout=0)
# The runs of a case share their phases: the second one takes those that apply to it from the first.
CASES = {
    "dropout": [dict(DROPOUT, undistilled=True, kd_200=True),
                dict(DROPOUT, use_comp_loss=True, reward_function="real", curriculum="uniform")],
    "quiz selects": [dict(task="COPA", teacher_model="still", head_dropout=0, use_comp_loss=True,
                          reward_function="real", select_on="quiz", weight_decay=1.0, max_grad_norm=0.01)],
    "regression": [dict(task="STS-B", tasks=["STS-B", "SST-2", "CB"], teacher_model="still", undistilled=True,
                        kd_200=True, head_dropout=0, reward_function="real"),
                   dict(task="STS-B", tasks=["STS-B", "SST-2", "CB"], teacher_model="still", head_dropout=0,
                        use_comp_loss=True)],
    "readings": [dict(READINGS, use_comp_loss=True, reward_function="real", kd_200=True,
                      set=["pkd_layers=skip", "soft_loss=logits", "meta_term=attached"]),
                 dict(READINGS, reward_function="real", policy_learning_rate=5e-2,
                      set=["advantage=step_mean", "reward_of=improvement"])],
    "two encoders": [dict(TWO, kd_200=True), dict(TWO, reward_function="real", curriculum="main_task")],
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Encoders that tell examples apart before they are trained. Only `moving` has dropout."""
    root = tmp_path_factory.mktemp("pretrained")
    still = dict(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    kinds = (("moving", 5, {}), ("still", 8, still), ("first", 5, still), ("second", 15, still))
    return {name: make_encoder("bert", root / name, seed, initializer_range=0.3, **changes)
            for name, seed, changes in kinds}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """More rows than the other tests use: enough for a tiny encoder to learn from."""
    root = tmp_path_factory.mktemp("data")
    for name in SMALL["tasks"]:
        (root / name).mkdir()
        for split, size in (("train", 100), ("val", 30), ("test", 10)):
            lines = (ROOT / "sample_data" / name / f"{split}.jsonl").read_text().splitlines()[:size]
            (root / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("SST-2", "STS-B"):
        (root / name).mkdir()
        for split, size in (("train", 60), ("dev", 24), ("test", 10)):
            lines = (ROOT / "sample_data" / name / f"{split}.tsv").read_text().splitlines()[:1 + size]
            (root / name / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("case", CASES)
def test_every_figure(case, command, pretrained, data):
    for number, flags in enumerate(CASES[case], 1):
        flags = {name: pretrained[value] if name in ("teacher_model", "student_model") else value
                 for name, value in {**SMALL, **flags}.items()}
        code, folder = command(folder=f"runs/{number}", data_dir=data, **flags)
        assert code == 0
        found = agreement(folder)
        print(f"\n{case}, run {number}: largest difference per kind of figure")
        for kind, difference in found.largest.items():
            print(f"  {kind:<40} {difference:.2g}")
        assert found.first is None, found.first
