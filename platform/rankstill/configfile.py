"""The config tree from YAML with dotted overrides, and back."""

import copy
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rankstill.config import Config
from rankstill.errors import ConfigError
from rankstill.model_config import Section

SPACE = "sweep.space."
"""What is behind it is the name of a setting, dots and all."""


def load_config(origin: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or take a tree of plain values, and apply `dotted.key=value` overrides (values are YAML too).

    Raises:
        ConfigError: an unreadable file, an unknown key, a value of the wrong type or out of range.
    """
    tree = copy.deepcopy(origin) if isinstance(origin, dict) else _read_tree(origin)
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree)


def _read_tree(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        _refuse_twins(yaml.compose(text, yaml.SafeLoader), set())
    except OSError as error:
        raise ConfigError(f"--config {str(path)!r}: {error.strerror}; give a readable YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-13-45 is a ValueError
        raise ConfigError(f"--config {str(path)!r}: not valid YAML ({_one_line(error)}); mend the file") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {str(path)!r}: holds no mapping; start from jobs/configs/shop.yaml")
    return tree


def _refuse_twins(node: yaml.Node | None, seen: set[int]) -> None:
    """Raise MarkedYAMLError where a mapping has a key twice, of which only the last counts; `seen` are nodes' ids."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    names: set[str] = set()
    for child in node.value:
        key, value = child if isinstance(child, tuple) else (None, child)
        if isinstance(key, yaml.ScalarNode):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            names.add(key.value)
        _refuse_twins(value, seen)


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a tree of plain values; raises ConfigError that names the first field at fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_explain(first["loc"], first)) from None


def dump_config(config: Config) -> str:
    """The whole resolved tree as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe_fields(
    model: type[BaseModel] = Config, prefix: str = "", given: BaseModel | None = None
) -> Iterator[tuple[str, str, str]]:
    """Each setting as (dotted key, default, meaning), in the order of the tree; `given` holds a section's defaults."""
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        default: Any = getattr(given, name, None)
        if given is None and not field.is_required():
            default = field.get_default(call_default_factory=True)
        if section is not None:
            list_mark = ".0" if typing.get_origin(field.annotation) is tuple else ""
            own = default if isinstance(default, Section) else None
            yield from describe_fields(section, f"{prefix}{name}{list_mark}.", own)
        else:
            absent = given is None and field.is_required()
            yield f"{prefix}{name}", "" if absent else repr(default), field.description or ""


def _section_of(annotation: Any) -> type[Section] | None:
    """The section inside an annotation such as `Shop | None` or `tuple[Source, ...]`."""
    inner = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union)
        else (annotation,)
    )
    return next((part for part in inner if isinstance(part, type) and issubclass(part, Section)), None)


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key of a plain tree; list positions are numbers."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"argument {override!r}: not of the form dotted.key=value; write e.g. train.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={text!r}: the value is not valid YAML ({_one_line(error)}); quote it") from error
    node: Any = tree
    parts = ["sweep", "space", key.removeprefix(SPACE)] if key.startswith(SPACE) else key.split(".")
    last = parts[-1]
    for part, following in pairwise(parts):
        if isinstance(node, list):
            node = node[_position(node, part, key)]
        else:
            if node.get(part) in (None, "auto"):  # as in `resources: auto`
                node[part] = [] if following == "0" else {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{key}: {part!r} holds the value {node!r}, which has no parts; drop what follows it")
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        node[last] = value


def _position(items: list[Any], part: str, key: str) -> int:
    """A position in a list; the one behind its end makes room for one more."""
    if not (part.isascii() and part.isdecimal()) or int(part) > len(items):
        raise ConfigError(
            f"{key}: {part!r} is no position in a list of {len(items)}; count from 0, {len(items)} appends"
        )
    if int(part) == len(items):
        items.append({})
    return int(part)


def _explain(location: tuple[int | str, ...], error: Any) -> str:
    """One line for the first validation error: field, value, remedy."""
    location = _as_written(location)
    dotted = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = nearest(str(location[-1]), known)
        return f"config key {dotted!r} is unknown; did you mean {'.'.join([*map(str, location[:-1]), near])!r}?"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"config key {dotted!r} is missing; add it (`--help` lists every key)"
    value = error["input"]
    shown = "" if isinstance(value, dict) else f" has the value {value!r}"
    if not location:
        return f"config: {message}"
    return f"config key {dotted!r}{shown}: {message[0].lower()}{message[1:]}"


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is most like one that isn't."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _as_written(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A pydantic location without the names of union members, which no user wrote."""
    section: type[Section] | None = Config
    for place, part in enumerate(location[:-1]):
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            if field is None:
                return location
            section = _section_of(field.annotation)
            if section is None and place + 2 == len(location) and location[-1] in ("int", "literal['auto']"):
                return location[:-1]
    return location


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[Section] = Config
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")  # what was read has a name of its own
