"""What mkdocstrings shows of the public functions: signature and docstring as they are at run time.

`lulc.api` makes both from the configs, which nobody sees who only reads the source. The entry `extensions` of
mkdocs.yml names this file.
"""

from __future__ import annotations

import inspect
from typing import Any

import griffe

import lulc.api


class PublicFunctions(griffe.Extension):
    """Takes over what the functions of `lulc.api` say of themselves."""

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Replace docstring and parameters of a public function."""
        if func.path.rpartition(".")[0] != "lulc.api" or func.name not in lulc.__all__:
            return
        function = getattr(lulc.api, func.name)
        if func.docstring:
            func.docstring.value = inspect.getdoc(function) or ""
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    one.name,
                    annotation=inspect.formatannotation(one.annotation).replace("lulc.config.", ""),
                    kind=griffe.ParameterKind(one.kind.description),
                    default=None if one.default is inspect.Parameter.empty else repr(one.default),
                )
                for one in inspect.signature(function, eval_str=False).parameters.values()
            )
        )
