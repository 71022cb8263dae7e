"""Files that are whole or not there: written under another name, synced, renamed; checksums; locks."""
import errno
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bookkeeping.errors import InputError, shown
from bookkeeping.signals import stop_if_asked

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what flock answers where a file system has none
LFS_POINTER = "version https://git-lfs"  # how the text begins that git-lfs keeps in place of a large file


def check_folder(folder, flag):
    """Make the folder of a flag; InputError if it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{flag} {folder}: cannot be made ({error.strerror}); give a folder that can be written to"
        ) from None


def sync(path):
    """Have the disk hold a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path, content):
    """Write content as JSON under a new name, sync, then rename: the file is whole or not there."""
    part = Path(f"{path}.part{os.getpid()}")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    sync(part)
    os.replace(part, path)


def read_json(path, way_out):
    """The JSON object in a file of ours; InputError if it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected the JSON that a run wrote; {way_out}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: {type(content).__name__} found, expected the JSON object that a run wrote; {way_out}")
    return content


STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def check_object(pairs):
    """The dict of a JSON object's (name, value) pairs: json's object_pairs_hook. InputError where a name
    stands twice, a text is no Unicode or a number is not finite, all of which json lets pass."""
    record = {}
    for name, value in pairs:
        if name in record:
            raise InputError(f"field {shown(name)} stands twice in one object, expected once")
        try:
            STRICT.encode([name, value]).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise InputError(f"field {shown(name)}: {half} found, half of a character, expected valid"
                             " Unicode; write the text anew from its source") from None
        except ValueError:
            raise InputError(f"field {shown(name)}: {shown(value)} found, expected a finite number; leave it"
                             " out, or write null") from None
        record[name] = value
    return record


def json_checksum(content):
    """sha256 of a JSON object, whatever the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path, content):
    """write_json of a JSON object with a checksum of itself."""
    content = json.loads(json.dumps(content, default=str))
    write_json(path, {**content, "checksum": json_checksum(content)})


def read_record(path, way_out):
    """What write_record wrote; InputError if it was altered."""
    content = read_json(path, way_out)
    if content.pop("checksum", None) != json_checksum(content):
        raise InputError(f"{path}: not what a run wrote (its checksum differs); {way_out}")
    return content


def checksum(path):
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder):
    """{relative name: sha256} of all files below a folder."""
    return {
        str(path.relative_to(folder)): checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def publish(part, folder):
    """Give a folder that was written under another name its own, when the disk holds all of it."""
    for path in sorted(part.rglob("*"), reverse=True):
        sync(path)
    sync(part)
    part.rename(folder)
    sync(folder.parent)


@contextmanager
def lock(path, say=None, busy=None):
    """Hold a lock file; the operating system frees it with the process, however that ends. If another process
    holds it: InputError with the text `busy`, or else say so and wait. InputError where the file system has
    no such locks."""
    held = FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if busy:
            raise InputError(busy) from None
        say(f"waiting for another run, which computes the same ({path})")
        while True:
            try:
                held.acquire(timeout=0.5)
                break
            except Timeout:
                stop_if_asked()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(f"{path}: the file system has no locks (flock: {error.strerror}); give"
                         " --output_dir and --phase_dir on one that has (docs/CLUSTER.md)") from None
    try:
        yield
    finally:
        held.release()
