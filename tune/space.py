"""The space that a sweep searches: settings by dotted key, each with its choices or its range."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rankstill.config import Config
from rankstill.configfile import describe_fields, nearest, parse_config
from rankstill.errors import ConfigError
from rankstill.model_config import Student
from rankstill.sweep_config import Dimension

SECTIONS = ("student", "distill", "train")
"""What may vary; everything else decides what the soft labels are, which all students share."""
COUNTED = 10_000
"""Students of a space, more than which are as good as endless."""
BETWEEN = 1 / math.sqrt(2)
"""A place within a range that is no whole number where its ends are."""
SIZES = {"student.init": ["teacher", "base"]}

QUICK = {
    "distill.temperature": Dimension(low=0.5, high=4.0, log=True),
    "distill.alpha": Dimension(low=0.0, high=1.0),
    "distill.margin": Dimension(choices=(0.0, 0.1, 1.0)),
    "train.learning_rate": Dimension(low=1e-4, high=1e-3, log=True),
    "student.layers": Dimension(choices=(1, 2, 3), when=SIZES),
}
STANDARD = {
    **QUICK,
    "student.family": Dimension(choices=("cross", "bi", "late")),
    "student.vectors": Dimension(choices=(8, 16, 32), when={"student.family": "late"}),
    "student.width": Dimension(choices=(32, 64, 128), when={"student.family": ["bi", "late"]}),
    "distill.pointwise": Dimension(choices=(0.0, 0.5, 1.0)),
    "distill.hard": Dimension(choices=("listwise", "bce", "lambda")),
    "distill.adaptive": Dimension(choices=(False, True)),
}
WIDE = {
    **STANDARD,
    "distill.kl": Dimension(choices=("forward", "reverse", "symmetric")),
    "student.prune.heads": Dimension(choices=(0.0, 0.25, 0.5), when={"student.family": "cross"}),
    "student.prune.units": Dimension(choices=(0.0, 0.25, 0.5), when={"student.family": "cross"}),
    "train.dropout": Dimension(low=0.0, high=0.2),
    "train.list_size": Dimension(choices=(8, 12, 16)),
}
PRESETS: dict[str, dict[str, Dimension]] = {"none": {}, "quick": QUICK, "standard": STANDARD, "wide": WIDE}

Params = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Dimensions of a sweep, each behind those that it depends on."""

    dimensions: dict[str, Dimension]
    base: Config
    """What the others are."""

    def sample(self, draw: Callable[[str, Dimension], Any]) -> Params:
        """Settings, of which `draw` gives each that matters beside those before it."""
        params: Params = {}
        for key, dimension in self.dimensions.items():
            if all(_meets(params.get(other, value_of(self.base, other)), v) for other, v in dimension.when.items()):
                params[key] = draw(key, dimension)
        return params

    def config(self, params: Mapping[str, Any]) -> Config:
        """The config of one trial.

        Raises:
            ConfigError: the settings don't go together.
        """
        return with_settings(self.base, params)

    def at(self, key: str, value: Any) -> Config:
        """The config with one dimension's value, its conditions met, all others as they are.

        Raises:
            ConfigError: the value can't be.
        """
        when = self.dimensions[key].when.items()
        needed = {other: wanted[0] if isinstance(wanted, list) else wanted for other, wanted in when}
        return self.config({**needed, key: value})

    def students(self) -> dict[str, Student]:
        """The student's settings, each dimension at its choices or its ends, all others as they are, by which it is."""
        return {
            _place(key, value): self.at(key, value).student
            for key, dimension in self.dimensions.items()
            if key.startswith("student.")
            for value in dimension.values
        }

    @property
    def size(self) -> float:
        """Different students in it: a count, or infinity."""
        if any(not dimension.choices for dimension in self.dimensions.values()):
            return math.inf
        known: set[str] = set()
        self._count([], known)
        return len(known) if len(known) < COUNTED else math.inf

    def _count(self, chosen: list[int], known: set[str]) -> None:
        """Walk through all choices, which `chosen` names by place, or through so many that they needn't be counted."""
        if len(known) >= COUNTED:
            return
        places = iter(chosen)
        open_choices = 0

        def draw(_: str, dimension: Dimension) -> Any:
            nonlocal open_choices
            place = next(places, None)
            if place is None:
                open_choices = open_choices or len(dimension.choices)
                place = 0
            return dimension.choices[place]

        params = self.sample(draw)
        if not open_choices:
            known.add(repr(sorted(params.items())))
            return
        for place in range(open_choices):
            self._count([*chosen, place], known)


def make_space(config: Config) -> Space:
    """The space of a config, each dimension tried at its choices or its ends.

    Raises:
        ConfigError: nothing varies, a key that can't vary, a null for one that doesn't, a condition on what is unknown,
            or a value out of range.
    """
    preset = PRESETS[config.sweep.preset]
    for key, dimension in config.sweep.space.items():
        if dimension is None and key not in preset:
            raise ConfigError(
                f"config key 'sweep.space.{key}' is null, but preset {config.sweep.preset!r} varies no such setting;"
                " drop the key"
            )
    given = {**preset, **config.sweep.space}
    dimensions = {key: dimension for key, dimension in given.items() if dimension is not None}
    if not dimensions:
        raise ConfigError("config key 'sweep.space' is empty and sweep.preset is 'none'; name settings to vary")
    known = [key for key, _, _ in describe_fields()]
    for key, dimension in dimensions.items():
        for name in (key, *dimension.when):
            # A schedule stands for its two ends.
            if name not in known and f"{name}.start" not in known:
                close = nearest(name, [one.removesuffix(".start") for one in known])
                raise ConfigError(f"config key 'sweep.space.{key}': {name!r} is no setting; did you mean {close!r}?")
        allowed = ", ".join(f"{one}.*" for one in SECTIONS)
        if key.split(".")[0] not in SECTIONS:
            raise ConfigError(
                f"config key 'sweep.space.{key}': all students of a sweep share data and soft labels; vary {allowed}"
            )
        if fixed := [name for name in dimension.when if name.split(".")[0] not in SECTIONS]:
            raise ConfigError(f"config key 'sweep.space.{key}': when {fixed[0]!r}, which never varies; name {allowed}")
        if parts := [name for name in dimensions if name.startswith(f"{key}.")]:
            raise ConfigError(f"config key 'sweep.space.{key}' and its part {parts[0]!r} both vary; null one of them")
    space = Space(_ordered(dimensions), config)
    for key, dimension in space.dimensions.items():
        for value in dimension.values:
            try:
                space.at(key, value)
            except ConfigError as error:
                raise ConfigError(f"{_place(key, value)}: {error}") from error
        if dimension.low is not None and dimension.high is not None and not dimension.whole:
            value = dimension.low + BETWEEN * (dimension.high - dimension.low)
            try:
                space.at(key, value)
            except ConfigError as error:
                raise ConfigError(f"{_place(key, value)}: {error}; add whole: true, or give choices") from error
    return space


def _place(key: str, value: Any) -> str:
    return f"config key 'sweep.space.{key}' holds {value!r}"


def _ordered(dimensions: dict[str, Dimension]) -> dict[str, Dimension]:
    """Dimensions behind those that their conditions name.

    Raises:
        ConfigError: two that wait for each other.
    """
    left, ordered = dict(dimensions), {}
    while left:
        free = [key for key, dimension in left.items() if not any(other in left for other in dimension.when)]
        if not free:
            raise ConfigError(f"config key 'sweep.space': {', '.join(left)} wait for each other; drop a `when`")
        for key in free:
            ordered[key] = left.pop(key)
    return ordered


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with settings by dotted key in place of its own."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for key, value in settings.items():
        node = tree
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        node[last] = copy.deepcopy(value)
    return parse_config(tree)


def value_of(config: Config, key: str) -> Any:
    """A setting by dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _meets(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted
