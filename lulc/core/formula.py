"""Formulas over channels: parsed by this grammar, checked for units, never executed as code.

    sum     = product {("+" | "-") product}
    product = sign {("*" | "/") sign}
    sign    = "-" sign | atom
    atom    = number | name | name "(" sum {"," sum} ")" | "(" sum ")"

A name may have a date before it: ``spring/B04``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lulc.core.schema import INDEX_UNIT, REFLECTANCE_UNIT, InputError

MAX_LENGTH, MAX_DEPTH = 500, 40  # limits on characters and on nested brackets

TERRAIN = ("slope", "aspect_sin", "aspect_cos")
"""Functions of one layer of elevation, which need the neighbouring pixels."""

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|([A-Za-z_]\w*)|(.))", re.DOTALL)
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul
}  # fmt: skip

_SCALES = {
    "dB": "logarithms: the ratio of two powers is their difference, VV - VH",
    INDEX_UNIT: "100 above their index: write its bands instead",
}
"""Units that can't be multiplied or divided, and the reason."""

Unit = dict[str, float]  # powers of base units; empty for a plain number


@dataclass(frozen=True)
class Node:
    """A number, a name, or an operator or function with arguments."""

    kind: str
    text: str
    arguments: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Formula:
    """A parsed formula; made by `parse`."""

    text: str
    root: Node

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order of occurrence, each once; a terrain function counts as one name."""
        return tuple(dict.fromkeys(_names(self.root)))

    def renamed(self, names: Mapping[str, str]) -> str:
        """Return the text of the formula with other names."""
        return _text(self.root, names)

    def evaluate(self, planes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the values, float32 like the planes, NaN where a denominator is zero or an input is NaN."""
        with np.errstate(all="ignore"):
            return np.asarray(_evaluate(self.root, planes))

    def unit(self, units: Mapping[str, str]) -> str:
        """Return the unit of the values; raises InputError where units don't match."""
        return _shown(_unit(self.root, units, self.text))


def parse(text: str, dates: Collection[str] = ()) -> Formula:
    """Parse a formula. Raises InputError if the text is no formula.

    Parameters
    ----------
    text
        Names, numbers, ``+ - * /``, brackets and functions.
    dates
        Known dates, such as ``spring`` in ``spring/B04``.
    """
    if len(text) > MAX_LENGTH:
        raise _refusal(text[:40] + "...", f"it has {len(text)} characters, expected at most {MAX_LENGTH}")
    parser = _Parser(text, dates)
    root = parser.sum(0)
    if parser.kind:
        raise _refusal(text, f"'{parser.word}' stands where an operator is expected")
    formula = Formula(text, root)
    if not formula.names:
        raise _refusal(text, "it names no channel")
    return formula


class _Parser:
    """Recursive descent over the tokens of a formula; `kind` and `word` are those of the next token."""

    def __init__(self, text: str, dates: Collection[str]) -> None:
        self._text, self._dates, self._place = text, dates, 0
        self._next()

    def _next(self) -> None:
        match = _TOKEN.match(self._text, self._place)
        if match is None or not match.group().strip():
            self.kind, self.word = "", "the end"
            return
        self._place = match.end()
        self.kind = ("number", "name", "sign")[match.lastindex - 1 if match.lastindex else 0]
        self.word = match.group(match.lastindex or 0)
        if self.kind == "name" and self.word in self._dates:
            dated = re.compile(r"/[A-Za-z_]\w*").match(self._text, self._place)
            if dated is None:
                raise _refusal(self._text, f"the date '{self.word}' has no channel after it")
            self.word, self._place = self.word + dated.group(), dated.end()

    def _take(self, signs: str) -> str:
        """Consume and return the next token if it is one of `signs`, else return ``""``."""
        word = self.word if self.kind == "sign" and self.word in signs else ""
        if word:
            self._next()
        return word

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _refusal(self._text, f"its brackets nest deeper than {MAX_DEPTH}")
        node = self._product(depth)
        while sign := self._take("+-"):
            node = Node("operator", sign, (node, self._product(depth)))
        return node

    def _product(self, depth: int) -> Node:
        node = self._signed(depth)
        while sign := self._take("*/"):
            node = Node("operator", sign, (node, self._signed(depth)))
        return node

    def _signed(self, depth: int) -> Node:
        negative = False
        while self._take("-"):
            negative = not negative
        node = self._atom(depth)
        return Node("operator", "negative", (node,)) if negative else node

    def _atom(self, depth: int) -> Node:
        kind, word = self.kind, self.word
        if kind == "number":
            self._next()
            return Node(kind, word)
        if kind == "name":
            self._next()
            return self._call(word, depth) if self._take("(") else Node(kind, word)
        if not self._take("("):
            raise _refusal(self._text, f"'{word}' stands where a name or number is expected")
        node = self.sum(depth + 1)
        self._close()
        return node

    def _call(self, name: str, depth: int) -> Node:
        arguments = [self.sum(depth + 1)]
        while self._take(","):
            arguments.append(self.sum(depth + 1))
        self._close()
        if name in TERRAIN:
            if len(arguments) != 1 or arguments[0].kind != "name":
                raise _refusal(self._text, f"{name} takes the name of one layer of elevation")
            return Node("name", f"{name}({arguments[0].text})")
        if name not in _FUNCTIONS:
            known = ", ".join((*_FUNCTIONS, *TERRAIN))
            raise _refusal(self._text, f"there is no function {name}, expected one of {known}")
        if len(arguments) != _FUNCTIONS[name].arity:
            raise _refusal(
                self._text, f"{name} has {len(arguments)} arguments, expected {_FUNCTIONS[name].arity}"
            )
        return Node("function", name, tuple(arguments))

    def _close(self) -> None:
        if not self._take(")"):
            raise _refusal(self._text, f"'{self.word}' stands where ')' is expected")


def _names(node: Node) -> Iterator[str]:
    if node.kind == "name":
        yield node.text
    for argument in node.arguments:
        yield from _names(argument)


def _text(node: Node, names: Mapping[str, str]) -> str:
    arguments = [_text(argument, names) for argument in node.arguments]
    if node.kind == "name":
        return names.get(node.text, node.text)
    if node.kind == "function":
        return f"{node.text}({', '.join(arguments)})"
    if node.kind == "operator":
        # With brackets around every operation, the text parses to the same tree.
        negative = node.text == "negative"
        return f"(-{arguments[0]})" if negative else f"({arguments[0]} {node.text} {arguments[1]})"
    return node.text


def _evaluate(node: Node, planes: Mapping[str, np.ndarray]) -> Any:
    if node.kind == "number":
        return np.float32(node.text)
    if node.kind == "name":
        return planes[node.text]
    values = [_evaluate(argument, planes) for argument in node.arguments]
    if node.kind == "function":
        return _FUNCTIONS[node.text].compute(*values)
    if node.text == "negative":
        return -values[0]
    first, second = values
    if node.text != "/":
        return _OPERATORS[node.text](first, second)
    # Never change a plane of the caller.
    second = np.array(second, copy=True if node.arguments[1].kind in ("name", "number") else None)
    second[second == 0] = np.nan
    return first / second


def _unit(node: Node, units: Mapping[str, str], text: str) -> Unit:
    if node.kind == "number":
        return {}
    if node.kind == "name":
        unit = units[node.text]
        return {unit: 1.0} if unit != "1" else {}
    arguments = [_unit(argument, units, text) for argument in node.arguments]
    if node.kind == "function":
        return _FUNCTIONS[node.text].unit(text, node.text, *arguments)
    if node.text == "negative":
        return arguments[0]
    if node.text in "+-":
        return _same(text, node.text, *arguments)
    first, second = arguments
    for unit, meaning in _SCALES.items():
        if unit in first and unit in second:
            raise _refusal(text, f"{node.text} joins two values in {unit}, which are {meaning}")
    sign = 1 if node.text == "*" else -1
    powers = {name: first.get(name, 0) + sign * second.get(name, 0) for name in {*first, *second}}
    return {name: power for name, power in powers.items() if power}


def _same(text: str, name: str, *units: Unit) -> Unit:
    if any(unit != units[0] for unit in units):
        shown = " and ".join(_shown(unit) for unit in units)
        raise InputError(
            f"cannot use the formula '{text}', since {name} joins the units {shown}, expected one unit",
            "Convert one of them; fraction(B08) is reflectance as a plain number, 0 to 1.",
        )
    return units[0]


def _plain(text: str, name: str, *units: Unit) -> Unit:
    return _same(text, name, {}, *units)


def _root(text: str, name: str, unit: Unit) -> Unit:
    return {base: power / 2 for base, power in unit.items()}


def _of_reflectance(text: str, name: str, unit: Unit) -> Unit:
    if unit != {REFLECTANCE_UNIT: 1.0}:
        raise _refusal(text, f"fraction takes a reflectance, but is given the unit {_shown(unit)}")
    return {}


def _code(text: str, name: str, unit: Unit, number: Unit) -> Unit:
    return {}


class _Function(NamedTuple):
    arity: int
    compute: Callable[..., Any]
    unit: Callable[..., Unit]


_FUNCTIONS: Mapping[str, _Function] = {
    "abs": _Function(1, np.abs, _same),
    "sqrt": _Function(1, np.sqrt, _root),
    "log": _Function(1, np.log, _plain),
    "log10": _Function(1, np.log10, _plain),
    "exp": _Function(1, np.exp, _plain),
    "min": _Function(2, np.minimum, _same),
    "max": _Function(2, np.maximum, _same),
    "fraction": _Function(1, lambda x: x * np.float32(1e-4), _of_reflectance),
    "is": _Function(2, lambda x, n: np.where(np.isnan(x), x, np.float32(1) * (x == n)), _code),
}


def _shown(unit: Unit) -> str:
    parts = [name if power == 1 else f"({name})^{power:g}" for name, power in sorted(unit.items())]
    return " x ".join(parts) or "1"


def _refusal(text: str, problem: str) -> InputError:
    return InputError(
        f"cannot use the formula '{text}', since {problem}",
        "Write names of channels, numbers, + - * /, brackets and functions: (B03 - B08) / (B03 + B08).",
    )
