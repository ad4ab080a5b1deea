"""A function as a command: its options are its signature, whoever calls it: the command line, a YAML file, Python.

A value's way: words of the line and YAML become one flat mapping `{"method.rank": "4"}`, each value becomes what its
annotation says (`peft_core.values`), once, and the function gets them, methods and data sets as objects with options.
Later ones win, of the signature, the recipe, `--config` files in their order, and flags.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft_core.config_files import find_config
from peft_core.errors import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.cli.line import read_config, split_line, take
from peft_core.jobs.cli.options import (
    as_choices,
    check_key,
    flatten,
    hints,
    is_choice,
    takes_many,
)  # fmt: skip
from peft_core.values import defaults_of, describe, typed

OURS = ("help", "debug", "config")
Layer = tuple[str, dict[str, Any]]
"""Where settings stand (a file, or "" for flags and arguments), and the settings."""


class Command:
    """A function that the command line, a YAML file and Python call alike; made by `@command`."""

    def __init__(
        self, function: Callable, domain: str, default_recipe: Callable[[dict], str | None] | None = None,
        groups: Mapping[str, str] | None = None, recipes: Mapping[str, Command] | None = None,
    ) -> None:  # fmt: skip
        functools.update_wrapper(self, function)
        self.recipes = dict(recipes or {})
        self.groups = {heading: tuple(names.split()) for heading, names in (groups or {}).items()}
        self.function, self.domain, self.default_recipe = function, domain, default_recipe
        self.parameters = {_option(name): each for name, each in inspect.signature(function).parameters.items()}
        self.name = function.__name__.strip("_")
        for other in self.recipes.values():
            other.name = self.name

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        return {_option(name): hint for name, hint in hints(self.function).items()}

    def __call__(self, *positional: Any, **given: Any) -> Any:
        if (other := self.recipes.get(str(given.get("recipe")))) is not None:
            return other(*positional, **given)
        first = dict(zip(self.parameters, positional, strict=False))
        return self.call(self.resolve([("", first | {_option(name): value for name, value in given.items()})]))

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """Runs the function on what `resolve` gives."""
        return self.function(**{self.parameters[name].name: value for name, value in arguments.items()})

    # ---- values ----------------------------------------------------------------------------------------------------

    def resolve(self, layers: list[Layer]) -> dict[str, Any]:
        """The function's arguments, typed, from layers of nested settings, later ones winning.

        Raises:
            PeftError: an unknown key (with the nearest), a value of the wrong type or out of its range, a missing one.
        """
        known: dict[tuple[str, str], Any] = {}
        if "recipe" not in self.parameters:
            return self._arguments(layers, known)
        name = next((layer["recipe"] for _, layer in reversed(layers) if layer.get("recipe")), None)
        if name is None:
            found = self._arguments(layers, known)
            name = self.default_recipe(found) if self.default_recipe else None
            if name is None:
                return found
        path = find_config("recipe", str(name), self.domain)
        layers = [(str(path), read_yaml(path)), *layers, ("", {"recipe": str(name)})]
        return self._arguments(layers, known)

    def _arguments(self, layers: Sequence[Layer], known: dict[tuple[str, str], Any]) -> dict[str, Any]:
        """The arguments; `known` holds the values that were typed before, by key and the name that brings the key."""
        choices, layers = as_choices(layers, self.hints)
        choices = self.default_choices() | choices
        values: dict[str, Any] = {}
        for where, layer in layers:
            values |= {key: (value, where) for key, value in flatten(layer, self.hints)}
        for key, name in choices.items():
            self.hints[key].check_name(name, self.domain)
            for option, value in self.hints[key].preset(name).items():
                values.setdefault(f"{key}.{option}", (value, name))
        self._check_complete(values, choices)
        found: dict[str, Any] = {}
        for key, (value, where) in values.items():
            place = (key, choices.get(key.partition(".")[0], ""))
            if place not in known:
                hint = check_key(key, self.hints, choices, where)
                flag = self.name if self._is_positional(key) else f"--{key}"
                known[place] = typed(value, hint, f"{key} in {where}" if where else flag)
            found[key] = known[place]
        return {name: self._argument(name, found, choices) for name in self.parameters}

    def _argument(self, name: str, found: Mapping[str, Any], choices: Mapping[str, str]) -> Any:
        hint, default = self.hints[name], self.parameters[name].default
        if not is_choice(hint):
            return found.get(name, default)
        if hint.named and name not in choices:
            return None
        chosen = choices.get(name, "")
        options = {key.partition(".")[2]: value for key, value in found.items() if key.startswith(f"{name}.")}
        argument = hint(chosen, options)
        if hint.complete:
            argument.options = argument.all()
            missing = [key for key, value in argument.options.items() if value is inspect.Parameter.empty]
            if missing:
                raise PeftError(f"{chosen or name} needs --{name}.{missing[0]}: see `{self.name} --help`.")
        argument.check()
        return argument

    def _check_complete(self, values: Mapping[str, Any], choices: Mapping[str, str]) -> None:
        for name, parameter in self.parameters.items():
            if parameter.default is parameter.empty and name not in values and name not in choices:
                flag = name if self._is_positional(name) else f"--{name}"
                what = "a name" if is_choice(self.hints[name]) else describe(self.hints[name])
                raise PeftError(f"{self.name} needs {flag} ({what}): see `{self.name} --help`.")

    def default_choices(self) -> dict[str, str]:
        """The names that stand where none is given: `method` -> lora."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return {name: word for name, word in defaults.items() if isinstance(word, str) and is_choice(self.hints[name])}

    def defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting where nothing is said, `method.rank` among them for the names in these arguments."""
        found: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if not is_choice(self.hints[name]):
                found[name] = parameter.default
            elif arguments.get(name) is not None:
                options = defaults_of(self.hints[name].accepts(arguments[name].name))
                found |= {f"{name}.{option}": value for option, value in options.items()}
        return found

    def _is_positional(self, name: str) -> bool:
        return name in self.parameters and self.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD

    @property
    def positional(self) -> str | None:
        """The argument whose words need no flag."""
        return next(filter(self._is_positional, self.parameters), None)

    # ---- words -----------------------------------------------------------------------------------------------------

    def of_line(self, argv: Sequence[str], program: str = "") -> Command:
        """The command that a line means: one of `recipes`, where its last --recipe or --config names it, else this one."""
        if not self.recipes:
            return self
        flags = split_line(argv)[0]
        named = [values[0] for key, values in flags if key == "recipe" and values]
        for key, values in () if named else flags:
            if key == "config" and values:
                named += [str(read_config(value, program, self.name).get("recipe")) for value in values]
        return self.recipes.get(named[-1], self) if named else self

    def read_line(self, argv: Sequence[str], program: str = "") -> list[Layer]:
        """Layers of the command line: its `--config` files, then its flags."""
        flags, loose = split_line(argv)
        paths = [value for key, values in flags if key == "config" for value in values or [""]]
        files = [(value, read_config(value, program, self.name)) for value in paths]
        given = [(key, values) for key, values in flags if key not in OURS]
        named = {key: values[0] for key, values in given if values and is_choice(self.hints.get(key))}
        choices = self.default_choices() | as_choices([*files, ("", named)], self.hints)[0]
        for key, name in choices.items():
            self.hints[key].check_name(name, self.domain)
        layer: dict[str, Any] = {}
        for key, values in given:
            value, rest = take(key, values, check_key(key, self.hints, choices, ""))
            layer[key] = layer[key] + value if isinstance(layer.get(key), list) and isinstance(value, list) else value
            loose += rest
        if loose and self.positional is None:
            raise PeftError(f'"{loose[0]}" belongs to no option: see `{self.name} --help`.')
        if loose:
            many = takes_many(self.hints[str(self.positional)])
            if not many and len(loose) > 1:
                raise PeftError(f'"{loose[1]}" is one too many: {self.name} takes one {self.positional}.')
            layer[str(self.positional)] = loose if many else loose[0]
        return [*files, ("", layer)]


def _option(name: str) -> str:
    """`as` for an argument `as_`, which Python would not take without the underscore."""
    return name.rstrip("_")


def command(
    domain: str,
    default_recipe: Callable[[dict], str | None] | None = None,
    groups: Mapping[str, str] | None = None,
    recipes: Mapping[str, Command] | None = None,
) -> Callable[[Callable], Command]:
    """Makes a function a command. `domain` is the folder of its configs; `default_recipe` names the recipe to use
    where none is given, from the arguments as far as they are known; `groups`, heading -> options, is the order in which
    `--help` shows them: what is in none of them `--help all` shows. `recipes`, recipe -> command, are those that have options
    of their own: a line or a call with such a recipe runs that command in its place."""
    return lambda function: Command(function, domain, default_recipe, groups, recipes)
