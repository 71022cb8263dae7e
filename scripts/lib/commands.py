"""What the commands do alike: where their text goes, how they end."""
import sys

from bookkeeping.errors import InputError, TrainingError


def exit_code(work, *given):
    """Do a command's work. Returns what it returns, 0 for None; after one line 2, where something given
    cannot be used or a file cannot be read or written, and 1, where the work failed."""
    try:
        return work(*given) or 0
    except ImportError as error:
        print(f"error: {error}; the scripts need: pip install -r scripts/requirements.txt", file=sys.stderr)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 2


def put(text, path):
    """Write text to a file, whose folder is made, or to the screen where path is None."""
    if path is None:
        print(text, end="")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
