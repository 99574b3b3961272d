"""Lists, tuples, dictionaries and namespaces that a template makes, each with its weight bounded when it is made.

The weight of a value is the number of values and characters that walking all of it would meet, shared parts counted each time:
what printing, comparing or dumping it costs. A few lines of template can nest a list in itself thirty times, so the weight is
kept with each container, where adding up the parts is cheap, and never found by walking.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_WEIGHT = 4_000_000


class TemplateBoundReached(SecurityError):
    """The template built or did more than it may."""


class WeighedList(list[Any]):
    """A list with its weight."""

    __slots__ = ("weight",)
    weight: int


class WeighedTuple(tuple[Any, ...]):
    """A tuple with its weight."""

    weight: int


class WeighedDict(dict[Any, Any]):
    """A dictionary with its weight."""

    __slots__ = ("weight",)
    weight: int


def weight_of(value: Any) -> int:
    """Return a value's weight. One that is not weighed yet, as a slice, is walked down to those that are."""
    if isinstance(value, str):
        return 1 + len(value)
    if isinstance(value, WeighedList | WeighedTuple | WeighedDict):
        return value.weight
    if isinstance(value, dict):
        return 1 + sum(weight_of(key) + weight_of(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return 1 + sum(map(weight_of, value))
    return 1


def weighed(value: Any) -> Any:
    """Return a container with its weight, anything else as it is. Raises TemplateBoundReached."""
    if isinstance(value, WeighedList | WeighedTuple | WeighedDict) or not isinstance(value, list | tuple | dict):
        return value
    weight = weight_of(value)
    if weight > MAX_WEIGHT:
        raise TemplateBoundReached("a value grew too large")
    kept = WeighedDict(value) if isinstance(value, dict) else WeighedList(value) if isinstance(value, list) else WeighedTuple(value)
    kept.weight = weight
    return kept


def weighed_list(parts: Iterable[Any]) -> WeighedList:
    """Collect parts and stop as soon as they weigh too much. Raises TemplateBoundReached."""
    kept, weight = WeighedList(), 1
    for part in parts:
        kept.append(weighed(part))
        weight += weight_of(part)
        if weight > MAX_WEIGHT:
            raise TemplateBoundReached("a value grew too large")
    kept.weight = weight
    return kept


class FlatNamespace(Namespace):
    """Jinja's namespace, which may hold no other namespace: printing one would walk them all."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        """Set an attribute. Raises TemplateBoundReached."""
        if isinstance(value, Namespace):
            raise TemplateBoundReached("a namespace in a namespace")
        super().__setitem__(name, weighed(value))

    def __repr__(self) -> str:
        return "<Namespace>"
