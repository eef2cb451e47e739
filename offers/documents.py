"""YAML and JSON texts, read so that everything in them can be traced back to its line.

JSON is read as JSON and traced as YAML, of which it is nearly a subset. A text may come from anybody with an upload
form, so nesting is bounded and anchors, aliases and custom tags are refused: a few lines of those can grow without end.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import yaml

MAX_DEPTH = 32
Path = tuple[str | int, ...]
#: With libyaml where PyYAML was built with it, which is about ten times faster.
_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
#: Half of a character beyond U+FFFF as JSON escapes it; YAML knows no such halves.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class UnreadableError(Exception):
    """The text is not YAML or JSON that we accept. `line` counts from 1."""

    def __init__(self, line: int, detail: str) -> None:
        super().__init__(detail)
        self.line = line
        self.detail = detail


@dataclass(frozen=True)
class Document:
    """A text's value (mappings, lists and scalars), and where everything in it stands."""

    value: object
    #: Whether a mapping somewhere has a key twice.
    repeats: bool
    _trace: Callable[[], yaml.Node | None]

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the thing at `path`, or of the nearest thing around it that there is; counts from 1."""
        node, line = self._root, 1
        for part in path:
            found = _member(node, part)
            if found is None:
                break
            line, node = found
        return line

    def repeated_keys(self) -> Iterator[tuple[int, str]]:
        """Line and name of every key that its mapping already has; YAML and JSON would silently keep the last."""
        if self.repeats:
            yield from _repeated_keys(self._root)

    @cached_property
    def _root(self) -> yaml.Node | None:
        return self._trace()


def read_document(text: str) -> Document:
    """Raises `UnreadableError`."""
    repeats = False

    def mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal repeats
        fields = dict(pairs)
        repeats |= len(fields) < len(pairs)
        return fields

    try:
        value = json.loads(text, object_pairs_hook=mapping)
    except ValueError:
        return _read_yaml(text)
    except RecursionError:
        raise UnreadableError(1, f"nested deeper than {MAX_DEPTH} levels") from None
    return Document(value, repeats, partial(_trace_json, text))


def _trace_json(text: str) -> yaml.Node | None:
    """The nodes of a JSON text; only made when a line is asked for, as that takes far longer than reading it."""
    try:
        # Tabs may stand between JSON's tokens, but without libyaml not between YAML's. Strings of JSON have none.
        return _compose(_SURROGATE.sub(r"\\u003f", text.replace("\t", " ")))[0]
    except (UnreadableError, yaml.YAMLError):
        # Valid JSON that YAML can't read (a raw DEL character, say): everything is in line 1.
        return None


def _read_yaml(text: str) -> Document:
    try:
        root, value = _compose(text)
        return Document(value, any(_repeated_keys(root)), lambda: root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UnreadableError(mark.line + 1 if mark else 1, error.problem or str(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(line, f"the character {_shown(error.character)} is not allowed") from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a scalar that looks like a date or number and is none ("2025-13-45").
        raise UnreadableError(1, str(error)) from None


def _compose(text: str) -> tuple[yaml.Node | None, object]:
    _refuse_what_expands(text)
    loader = _Loader(text)
    root: yaml.Node | None = loader.get_single_node()
    return root, loader.construct_document(root) if root is not None else None


def _shown(character: int | str | bytes) -> str:
    # The two loaders report it differently.
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)


def _refuse_what_expands(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise UnreadableError(line, "anchors and aliases (`&`, `*`) are not accepted: write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UnreadableError(line, f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _member(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Line and node of a mapping's key or a list's entry."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        entry = node.value[part]
        return entry.start_mark.line + 1, entry
    return None


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key.start_mark.line + 1, key.value
                seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _repeated_keys(entry)
