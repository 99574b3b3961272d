"""YAML without surprises, and where each value stands.

Knows: the safe subset of YAML 1.1 less anchors, aliases and repeated keys, which hide what a file says. Does not know: policies.
"""

from dataclasses import dataclass
from typing import Any

import yaml


class YamlInvalid(ValueError):
    """The text is outside the subset. `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file and the tree that it was made from."""

    content: Any
    _root: yaml.Node

    def line_of(self, location: tuple[int | str, ...]) -> int:
        """Return the line, from 1, of the innermost value that `location` (keys and indices) leads to."""
        node, line = self._root, _line(self._root)
        for step in location:
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
                if found is None:
                    break
                line, node = _line(found[0]), found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = _line(node)
            else:
                break
        return line


def load(text: str) -> Document:
    """Read one document. Raises YamlInvalid."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise YamlInvalid(1, "the file is empty")
        return Document(loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlInvalid(mark.line + 1 if mark else 1, error.problem or "not YAML") from error
    except YamlInvalid:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlInvalid(1, "not YAML") from error


class _Loader(yaml.SafeLoader):
    """Refuses what the subset leaves out while the tree is made, before it can grow."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise YamlInvalid(event.start_mark.line + 1 if event.start_mark else 1, "anchors and aliases are not supported")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode):
            seen: set[object] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise YamlInvalid(_line(key), "a key must be a word")
                if key.value in seen:
                    raise YamlInvalid(_line(key), f"key {key.value!r} is there twice")
                seen.add(key.value)
        return node


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
