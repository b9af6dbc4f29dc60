"""Check for optional packages before they are imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from lulc.core.schema import InputError


def require(packages: Iterable[str], what: str, extra: str) -> None:
    """Raise InputError if a package is missing, with the command to install it.

    Parameters
    ----------
    what
        Action that needs the packages, as it follows "cannot".
    extra
        Extra of this project that installs them.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"cannot {what}, since these Python packages are not installed: {', '.join(missing)}",
            f"In the folder of this project type: pip install '.[{extra}]'",
        )
