"""The rows of the paper's tables and the controls beside them: which run each comes from. Read by sweep.py
and make_tables.py."""
import functools
import json
from dataclasses import dataclass
from pathlib import Path

from arguments import PHASES as STOPS

PAPER_FILE = Path(__file__).with_name("paper_tables.json")  # the paper's numbers, with their source
PHASES = (*STOPS, "phase 4")
LOSSES = ("col", "com")


@dataclass(frozen=True)
class Row:
    """One row. found_as: its name in a run's result.json. phase: the last phase that it needs. loss, reward,
    curriculum: of the runs that have it; None: any of them has the same. flag: of main_superglue.py, without
    which a run leaves the row out. label: as a table shows it, where the paper does not have it. learning:
    whether its policy is one that can learn (LEARNING). baseline: whether it is a method to compare with, of
    --baselines."""
    found_as: str
    phase: str
    loss: str | None = None
    reward: str | None = None
    curriculum: str | None = None
    flag: str | None = None
    label: str | None = None
    learning: bool = False
    baseline: bool = False

    def losses(self, alternating, attached=False):
        """The losses of the runs that have the row. alternating: whether phases 2 and 3 take turns
        (`released`). Then every distilled student depends on the loss, and those that all variants are
        compared with are the collaborative ones. attached: whether the meta-teacher's term reaches the
        student (meta_term). With neither the loss reaches it by the policy alone, so that without a policy
        both losses are one and the same computation."""
        if alternating and self.found_as.startswith("kd"):
            return LOSSES[:1]
        if self.loss is None or (self.curriculum == "main_task" and not alternating and not attached):
            return LOSSES
        return (self.loss,)


ROWS = {
    "teacher": Row("teacher", "teacher"),
    "student": Row("student", "kd", flag="undistilled"),
    "kd": Row("kd", "kd"),
    **{f"meta_teacher_{loss}": Row("meta_teacher", "meta_teacher", loss) for loss in LOSSES},
    **{f"mpdistil_{loss}_{reward}": Row("mpdistil", "phase 4", loss, reward, "policy")
       for loss in LOSSES for reward in ("binary", "real")},
    **{f"no_curriculum_{loss}": Row("no_curriculum", "phase 4", loss, "binary", "main_task")
       for loss in LOSSES},
    "kd_200": Row("kd_200", "meta_teacher", flag="kd_200", label="Control: distilled student, distilled on"),
    "kd_quiz": Row("kd_quiz", "meta_teacher", flag="kd_quiz",
                   label="Control: distilled on train and quiz together"),
    "uniform": Row("mpdistil", "phase 4", "col", "binary", "uniform",
                   label="Control: uniform policy, collaborative + binary"),
    "mpdistil_learning": Row("mpdistil", "phase 4", "col", "real", "policy", learning=True,
                             label="Control, ours: a policy that can learn, collaborative + real"),
    **{name: Row(name, "kd", baseline=True, label=label) for name, label in (
        ("hinton_kd", "KD (Hinton et al. 2015)"), ("pkd_skip", "PKD, skip (Sun et al. 2019)"),
        ("pkd_last", "PKD, last (Sun et al. 2019)"), ("alp_kd", "ALP-KD (Passban et al. 2021)"),
        ("annealing_kd", "Annealing KD (Jafari et al. 2021)"),
        ("continuation_kd", "Continuation KD (Jafari et al. 2022)"),
        ("takd", "TAKD (Mirzadeh et al. 2020)"), ("distilbert", "DistilBERT's loss (Sanh et al. 2019)"),
        ("rail_kd", "RAIL-KD (Haidar et al. 2022)"), ("dml", "DML (Zhang et al. 2018)"),
        ("prokt", "ProKT (Shi et al. 2021)"), ("tinybert", "TinyBERT's losses (Jiao et al. 2020)"),
        ("minilm", "MiniLM's losses (Wang et al. 2020)"), ("metadistil", "MetaDistil (Zhou et al. 2022)"),
        ("theseus", "BERT-of-Theseus (Xu et al. 2020)"))},
}
# what makes a policy that can learn: readings (METHOD.md rows 27 and 28) and the policy's rate
LEARNING_SET, LEARNING_RATE = ("advantage=step_mean", "reward_of=improvement"), 1e-2
BASELINE_ROWS = [name for name, row in ROWS.items() if row.baseline]
CONTROLS = [name for name, row in ROWS.items() if row.label and not row.baseline]
OF_THE_PAPER = [name for name, row in ROWS.items() if not row.label]
MPDISTIL = [name for name in OF_THE_PAPER if name.startswith("mpdistil_")]
ALIASES = {"all": [*OF_THE_PAPER, *CONTROLS], "paper": OF_THE_PAPER, "controls": CONTROLS,
           "baselines": BASELINE_ROWS, "main_task": ["no_curriculum_col", "no_curriculum_com"]}


def find_rows(names):
    """Names of rows, aliases resolved, in the table's order; ValueError at one that is none."""
    for name in names:
        if name not in ROWS and name not in ALIASES:
            raise ValueError(f"{name!r} found, expected some of {', '.join([*ROWS, *ALIASES])}")
    wanted = {row for name in names for row in ALIASES.get(name, [name])}
    return [name for name in ROWS if name in wanted]


@functools.cache
def read_paper():
    """The content of paper_tables.json."""
    return json.loads(PAPER_FILE.read_text(encoding="utf-8"))


def label_of(name):
    """A row as a table shows it."""
    return ROWS[name].label or read_paper()["rows"].get(name, name)
