"""Packages of the extras: checked before they are imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from lulc.core.schema import InputError


def require(packages: Iterable[str], what: str, extra: str) -> None:
    """Refuse to begin what lacks a package.

    Parameters
    ----------
    what
        What they are needed for, as it follows "cannot".

    Raises
    ------
    InputError
        Naming those that are not installed, and how to install them.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"cannot {what}, since these Python packages are not installed: {', '.join(missing)}",
            f"In the folder of this project type: pip install '.[{extra}]'",
        )
