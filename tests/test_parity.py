"""The protocol `released` against traces of the authors' code in float64.

    MPDISTIL_PARITY_DIR=DIR python -m pytest tests/test_parity.py -s      every case folder in DIR
    python -m pytest tests/test_parity.py -s                              the two cases in tests/golden
"""
import os
from pathlib import Path

import pytest

from replay import Replay

FOLDER = Path(os.environ.get("MPDISTIL_PARITY_DIR") or Path(__file__).parent / "golden")
CASES = sorted(path.parent for path in FOLDER.glob("*/case.json"))


def test_there_are_cases():
    assert CASES, f"no case folder (one that holds case.json) found in {FOLDER}"


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder):
    comparison = Replay(folder).run()
    print(f"\n{folder.name}: largest difference per kind of figure (relative where not said)")
    for kind, difference in comparison.largest.items():
        print(f"  {kind:<40} {difference:.2g}")
    assert comparison.first is None, comparison.first
