"""Checks of prediction files."""
import json

from bookkeeping.errors import InputError


def compare_idx(path, found, expected, source, way_out):
    """InputError unless the predictions `found` in a file have the idx that are `expected`, those of
    `source`; a number is not a text."""
    missing = [idx for idx in expected if idx not in found]
    unexpected = [idx for idx in found if idx not in expected]
    if not missing and not unexpected:
        return

    def first(idx):
        return f" ({', '.join(map(json.dumps, idx[:3]))}{', ...' if len(idx) > 3 else ''})" if idx else ""

    alike = len({str(idx) for idx in missing} & {str(idx) for idx in unexpected})
    kind = f", of which {alike} differ only in type (a number here, text there)" if alike else ""
    raise InputError(f"{path}: its idx are not those of {source}: {len(missing)} missing{first(missing)},"
                     f" {len(unexpected)} unexpected{first(unexpected)}{kind}; {way_out}")
