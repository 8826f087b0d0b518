"""Settings of the engine from three places: a YAML file, options over it, and ``--set`` over both."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from headrace.core.errors import ConfigError, did_you_mean
from headrace.core.features import MISSING_ARGS


def gather(file: Path | None, options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of ``LLM``. ``assignments``: ``path=value``. Raises ``ConfigError``."""
    arguments = merged(_read(file), options)
    for assignment in assignments:
        _assign(arguments, assignment)
    return arguments


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, group by group."""
    result = dict(below)
    for name, value in above.items():
        base = result.get(name)
        if isinstance(base, Mapping) and isinstance(value, Mapping):
            value = merged(base, value)
        result[name] = value
    return result


def parse_yaml(text: str) -> Any:
    """A value as YAML types it. Raises ``ConfigError``."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"cannot read {text!r}: {str(error).splitlines()[0]}. Give a number, a word or a YAML value"
        ) from None


def _assign(arguments: dict[str, Any], assignment: str) -> None:
    """Sets ``a.b=value`` in nested dicts."""
    path, equals, text = assignment.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {assignment}: write it as name=value or group.name=value")
    value = parse_yaml(text)
    node = arguments
    for name in names[:-1]:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {assignment}: {name!r} is already set to {node!r}, which has no parts")
    node[names[-1]] = value
    for name in reversed(names):
        value = {name: value}
    _check_paths(f"--set {assignment}", value)


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"--config {file}: expected a mapping of LLM arguments, found a {type(content).__name__}")
    _check_paths(f"--config {file}", content)
    return content


def _check_paths(origin: str, settings: Mapping[str, Any]) -> None:
    """Raises ``ConfigError`` for a path that no setting has; values are checked where the engine is built."""
    groups, leaves = _known()
    for path in _paths(settings, leaves):
        if path in leaves or path in groups:
            continue
        name = path.rpartition(".")[2]
        same = sorted(one for one in leaves if one.rpartition(".")[2] == name)
        hint = f" Did you mean {same[0]!r}?" if same else did_you_mean(path, leaves | groups)
        raise ConfigError(f"{origin}: there is no setting {path!r}.{hint or _listed(path, leaves)}")


def _listed(path: str, leaves: set[str]) -> str:
    """The settings of the same group, or all."""
    group = path.rpartition(".")[0]
    near = sorted(one for one in leaves if group and one.startswith(group + "."))
    return f" Known: {', '.join(near or sorted(leaves))}"


def _paths(settings: Mapping[str, Any], leaves: set[str], prefix: str = "") -> Iterator[str]:
    """Every path that is set. The value of a single setting may be a mapping; it has no paths of its own."""
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and path not in leaves:
            yield from _paths(value, leaves, f"{path}.")
        else:
            yield path


def _known() -> tuple[set[str], set[str]]:
    """(groups, single settings) of ``LlmArgs``; those that this version lacks are refused by it, with the reason."""
    from headrace.core.config import LlmArgs

    groups: set[str] = set()
    leaves = {row.option for row in MISSING_ARGS}

    def visit(cls: Any, prefix: str) -> None:
        for name, field in cls.model_fields.items():
            inner = list(_groups_of(field.annotation))
            (groups if inner else leaves).add(f"{prefix}{name}")
            for one in inner:
                visit(one, f"{prefix}{name}.")

    visit(LlmArgs, "")
    # The model is an argument of the command.
    return groups, leaves - {"model"}


def _groups_of(annotation: Any) -> Iterator[Any]:
    """The configuration classes in a field's type: none for a single setting, several for a choice among them."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _groups_of(part)
    elif hasattr(annotation, "model_fields"):
        yield annotation
