"""Text on the screen."""
import sys


def escape_unprintable():
    """Have characters that the terminal's encoding lacks (a path with an accent, where it is ASCII) printed
    as escapes, instead of ending the run with an error of Python's."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
