"""Read and write YAML 1.2, in which `no`, `off` and 12:30 are text, as people expect, and not 1.1.

Where a section wants text, the value is text as written: the label 1e3 is no number, and 1.10 keeps its zero. Only true
and false are booleans, and a number that begins with a needless 0 is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel

TEXT = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"
MERGE = "tag:yaml.org,2002:merge"
RESOLVED = (
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    (MERGE, "<<", ["<"]),
)
TAGS = {tag for tag, _, _ in RESOLVED}
# PyYAML lets errors of its parts through, such as ValueError for a number of 5000 digits
FAILURES = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    # text is quoted where either version of YAML takes it for something else
    yaml_implicit_resolvers = {first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()}


for _kind in (_Loader, _Dumper):
    for _tag, _expression, _first in RESOLVED:
        _kind.add_implicit_resolver(_tag, re.compile(rf"(?:{_expression})\Z"), _first)


def loads(text: str, wanted: Any = None) -> Any:
    """Read one YAML document as plain data; raise ValueError where it is none, or names a key twice.

    `wanted` is the section that the document describes, or the type of a key of one; None: anything.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _take_as_written(node, wanted, False, set())
        return loader.construct_document(node)
    except FAILURES as error:
        raise ValueError(f"not valid YAML: {error}") from None


def value(text: str, section: type[BaseModel], keys: list[str]) -> Any:
    """Read the value of an override; where text is wanted and no list, mapping or quote begins, it is text as written.

    `keys` lead to it from the section. Raises ValueError as `loads`.
    """
    wanted: Any = section
    for key in keys:
        wanted = _below(wanted, key)
    text = text.strip()
    if is_text(wanted) and text[:1] not in ("[", "{", '"', "'") and text not in ("", "~", "null"):
        return text
    return loads(text, wanted)


def dumps(data: Any) -> str:
    """Write plain data as YAML that `loads` reads back to the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow(texts: Sequence[str]) -> str:
    """Write texts as a list on one line."""
    return yaml.dump(
        list(texts), Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf")
    ).strip()


def is_text(wanted: Any) -> bool:
    """Return whether values of a type are texts, or lists or mappings of nothing but texts.

    >>> is_text(str), is_text(tuple[str, ...] | None), is_text(float | str), is_text(Any)
    (True, True, False, False)
    """
    leaves = _leaves(wanted)
    return bool(leaves) and all(leaf is str or isinstance(leaf, str) for leaf in leaves)


def _leaves(wanted: Any) -> list[Any]:
    inner = [leaf for part in get_args(wanted) for leaf in _leaves(part)]
    return inner if get_args(wanted) else [] if wanted in (None, NoneType, ...) else [wanted]


def _below(wanted: Any, key: str) -> Any:
    sections = [leaf for leaf in _leaves(wanted) if isinstance(leaf, type) and issubclass(leaf, BaseModel)]
    if not sections:
        return wanted if is_text(wanted) else None
    field = sections[0].model_fields.get(key)
    return None if field is None else field.annotation


def _take_as_written(node: yaml.Node, wanted: Any, inside: bool, seen: set[int]) -> None:
    """Tag as text all nodes that are wanted as text, and every key; `inside` a list or mapping of texts, also null."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, held in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in keys:
                    raise ValueError(f"key {key.value!r} stands twice in line {key.start_mark.line + 1} and above")
                keys.add(key.value)
                key.tag = TEXT
            _take_as_written(held, _below(wanted, str(key.value)), is_text(wanted), seen)
    elif isinstance(node, yaml.SequenceNode):
        for held in node.value:
            _take_as_written(held, wanted, is_text(wanted), seen)
    elif is_text(wanted) and node.tag in TAGS and (node.tag != NULL or (inside and node.value)):
        node.tag = TEXT
