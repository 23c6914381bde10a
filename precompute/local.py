"""The caches of this machine as commands name them: by a path, or by the beginning of a key; and what they all say.

Every command that shows or moves a cache ends with how private it is, on stderr, so that JSON stays JSON.
"""

import re
from pathlib import Path

from ..data.artefact import cache_home
from ..data.example import DataError

PRIVACY = "A teacher cache holds the answers' tokens: keep it as you keep the forget set."


def find_path(name: str) -> Path:
    """Return the directory of a cache named by a path, or by the beginning of its key.

    Raises:
        DataError: there is no such cache, or several keys begin like this.
    """
    if name and Path(name).is_dir():
        return Path(name)
    is_key = re.fullmatch("[0-9a-f]{4,64}", name) is not None
    matches = (
        sorted(path for path in cache_home().glob(f"{name[:16]}*") if path.is_dir() and "." not in path.name)
        if is_key
        else []
    )
    if len(matches) != 1:
        found = ", ".join(path.name for path in matches) or "none"
        raise DataError(
            f"{name}: expected a cache directory, or the first 4 or more digits of one key in "
            f"{cache_home()}, found {found}. `viker cache list` names them."
        )
    return matches[0]
