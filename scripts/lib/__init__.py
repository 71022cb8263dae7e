"""What the commands in scripts/ share. Importing it puts the project's folder on the path, so that they
find the project's modules."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
