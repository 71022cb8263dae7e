"""Whether a run is finished: decided here, for the run itself and for a sweep of runs."""
from pathlib import Path

from arguments import NOT_PART_OF_THE_RUN, PATHS, PHASES, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record
from bookkeeping.identity import code_has_changed

STOPS = (*PHASES, None)  # of --stop_after; None: the whole run


def finished_result(folder, settings, data=None, by_content=False):
    """The result of a finished run in `folder` with these settings, or None if there is something left to do.

    settings: the flags as args.json holds them. data: the summary of data and encoders, compared as well
    where it is known. by_content: whether it ever is, so that how a path is spelled, and where a copy lies,
    does not matter. InputError if the folder holds another run, one that other code made, or something else.
    """
    if not folder.exists() or (folder.is_dir() and all(".part" in path.name for path in folder.iterdir())):
        return None  # or a run that was ended while it wrote its first file
    if not (folder / "args.json").is_file():
        raise InputError(
            f"--output_dir {folder}: it exists and is no run folder (no args.json); give another one")
    way_out = f"--output_dir {folder}: give another folder, or remove this one"
    before = with_defaults(read_json(folder / "args.json", way_out))
    differ = [
        f"--{name} {before.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted(before | settings)
        if name not in NOT_PART_OF_THE_RUN and before.get(name) != settings.get(name)
        and not (name in PATHS and (by_content or same_place(before.get(name), settings.get(name))))
    ]
    if differ:
        raise InputError(
            f"--output_dir {folder}: holds a run with other arguments ({'; '.join(differ)}); give another "
            "folder, or the arguments that it was started with")
    if data is not None and (folder / "data.json").is_file():
        there = read_json(folder / "data.json", way_out)
        changed = [name for name in sorted(there | data) if there.get(name) != data.get(name)]
        if changed:
            raise InputError(f"--output_dir {folder}: the run there was made from other data or encoders "
                             f"({', '.join(changed)} changed); give another folder")
    if not (folder / "result.json").is_file():
        return None
    result = read_record(folder / "result.json", way_out)
    if STOPS.index(result["stopped_after"]) < STOPS.index(settings["stop_after"]):
        return None
    other = ["all"]
    if "code" in result:
        other = [name for name, code in result["code"].items() if code_has_changed(code)]
    if other and not settings["fresh"]:
        raise InputError(
            f"--output_dir {folder}: holds this run, finished, but made by other code (changed since: "
            f"{', '.join(other)}); --fresh computes it again, or give another folder")
    return result


def same_place(first, second):
    """Whether two paths name one place."""
    return None not in (first, second) and Path(first).resolve() == Path(second).resolve()
