"""The rows of the paper's tables and the controls beside them: which run each comes from. Read by sweep.py
and make_tables.py."""
import functools
import json
from dataclasses import dataclass
from pathlib import Path

from arguments import PHASES as STOPS

PAPER_FILE = Path(__file__).with_name("paper_tables.json")  # the paper's numbers, with their source
PHASES = (*STOPS, "phase 4")


@dataclass(frozen=True)
class Row:
    """One row. found_as: its name in a run's result.json. phase: the last phase that it needs. loss, reward,
    curriculum: of the runs that have it; None: any of them has the same. flag: of main_superglue.py, without
    which a run leaves the row out."""
    found_as: str
    phase: str
    loss: str | None = None
    reward: str | None = None
    curriculum: str | None = None
    flag: str | None = None


ROWS = {
    "teacher": Row("teacher", "teacher"),
    "student": Row("student", "kd", flag="undistilled"),
    "kd": Row("kd", "kd"),
    **{f"meta_teacher_{loss}": Row("meta_teacher", "meta_teacher", loss) for loss in ("col", "com")},
    **{
        f"mpdistil_{loss}_{reward}": Row("mpdistil", "phase 4", loss, reward, "policy")
        for loss in ("col", "com")
        for reward in ("binary", "real")
    },
    **{
        f"no_curriculum_{loss}": Row("no_curriculum", "phase 4", loss, "binary", "main_task")
        for loss in ("col", "com")
    },
    "kd_200": Row("kd_200", "meta_teacher", flag="kd_200"),
    "uniform": Row("mpdistil", "phase 4", "col", "binary", "uniform"),
}
MPDISTIL = [name for name in ROWS if name.startswith("mpdistil_")]
CONTROLS = ["kd_200", "uniform"]
CONTROL_LABELS = {
    "kd_200": "Control: distilled student, distilled on",
    "uniform": "Control: uniform policy, collaborative + binary",
}
ALIASES = {"all": list(ROWS), "paper": [name for name in ROWS if name not in CONTROLS], "controls": CONTROLS,
           "main_task": ["no_curriculum_col", "no_curriculum_com"]}


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
    return read_paper()["rows"].get(name) or CONTROL_LABELS[name]
