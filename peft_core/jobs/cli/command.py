"""A function as a command: its options are its signature, whoever calls it: the command line, a YAML file, Python.

jsonargparse types the values and writes the help. This file adds what it lacks: several values after one option and
positional lists, names that bring their own options (`--method lora --method.rank 4`), recipes and config files whose
values flags change, and one sentence for a mistake.

Values come, later ones winning, from the signature, the recipe, `--config` files in their order, and flags.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft_core.config_files import find_config
from peft_core.errors import PeftError, nearest
from peft_core.files import read_yaml
from peft_core.jobs.cli.line import argument_docs, as_text, read_config, split_line, summary, take
from peft_core.jobs.cli.options import as_choices, check_key, describe, flatten, hints, is_choice, takes_many

OURS = ("help", "debug", "config")


class Command:
    """A function that the command line, a YAML file and Python call alike; made by `@command`."""

    def __init__(self, function: Callable, domain: str, default_recipe: Callable[[dict], str | None] | None) -> None:
        functools.update_wrapper(self, function)
        self.function, self.domain, self.default_recipe = function, domain, default_recipe
        self.hints = hints(function)
        self.parameters = inspect.signature(function).parameters
        self.name = function.__name__.strip("_")

    def __call__(self, *positional: Any, **given: Any) -> Any:
        first = dict(zip(self.parameters, positional, strict=False))
        return self.function(**self.resolve([("", first | given)]))

    def resolve(self, layers: list[tuple[str, dict]]) -> dict[str, Any]:
        """The function's arguments, typed, from layers of (where it stands, nested settings), later ones winning.

        Raises:
            PeftError: an unknown key (with the nearest), a value of the wrong type, a missing one.
        """
        if "recipe" not in self.parameters:
            return self._typed(layers)
        name = next((layer["recipe"] for _, layer in reversed(layers) if layer.get("recipe")), None)
        if name is None and self.default_recipe:
            name = self.default_recipe(self._typed(layers))
        if name is None:
            return self._typed(layers)
        path = find_config("recipe", str(name), self.domain)
        return self._typed([(str(path), read_yaml(path)), *layers, ("", {"recipe": str(name)})])

    def _typed(self, layers: list[tuple[str, dict]]) -> dict[str, Any]:
        choices, layers = as_choices(layers, self.hints)
        for name, parameter in self.parameters.items():
            if name not in choices and isinstance(parameter.default, str) and is_choice(self.hints[name]):
                choices[name] = parameter.default
        values, origin = {}, {}
        for where, layer in layers:
            for key, value in flatten(layer, self.hints):
                check_key(key, self.hints, choices, where)
                values[key], origin[key] = value, where
        for key, name in choices.items():
            for option, value in self.hints[key].preset(name).items():
                values.setdefault(f"{key}.{option}", value)
        for name, parameter in self.parameters.items():
            if parameter.default is parameter.empty and name not in values and name not in choices:
                flag = name if self._is_positional(name) else f"--{name}"
                raise PeftError(f"{self.name} needs {flag} ({describe(self.hints[name])}): see `{self.name} --help`.")
        parsed = self._parse(choices, values, origin)
        arguments = {}
        for name in self.parameters:
            if not is_choice(self.hints[name]):
                arguments[name] = parsed.get(name)
            elif name in choices or not self.hints[name].named:
                options = dict(parsed.get(name) or {})
                if not self.hints[name].complete:
                    options = {key: value for key, value in options.items() if f"{name}.{key}" in values}
                arguments[name] = self.hints[name](choices.get(name, ""), options)
            else:
                arguments[name] = None
        return arguments

    def _parse(self, choices: dict, values: dict, origin: dict) -> dict[str, Any]:
        from jsonargparse import ArgumentError

        line = [f"--{key}={as_text(value)}" for key, value in values.items()]
        try:
            return self.parser(choices).parse_args(line).as_dict()
        except ArgumentError as error:
            key = str(error).partition('key "')[2].partition('"')[0]
            if key not in values:
                raise PeftError(" ".join(str(error).split())) from error
            group, _, option = key.partition(".")
            hint = hints(self.hints[group].accepts(choices.get(group, "")))[option] if option else self.hints[group]
            flag = key if self._is_positional(group) else f"--{key}"
            where = f"{key} in {origin[key]}" if origin.get(key) else flag
            shown = " ".join(values[key]) if isinstance(values[key], list) else as_text(values[key])
            likely = nearest(str(values[key]), [str(c) for c in getattr(hint, "__args__", ())])
            raise PeftError(f'{where} takes {describe(hint)}, not "{shown}"{likely}.') from error

    def _is_positional(self, name: str) -> bool:
        return self.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD

    def parser(self, choices: Mapping[str, str]) -> Any:
        """jsonargparse's parser of the function, with the options of the names in `choices`."""
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(prog=self.name, exit_on_error=False, description=summary(self.function))
        groups = [name for name in self.parameters if is_choice(self.hints[name])]
        parser.add_function_arguments(self.function, skip=set(groups), fail_untyped=False, as_positional=False)
        for name in groups:
            cls = self.hints[name]
            if cls.named and name not in choices:
                parser.add_argument(f"--{name}")
                continue
            target = cls.accepts(choices.get(name, ""))
            add = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
            add(target, name, skip=set(cls.hidden), fail_untyped=False, as_positional=False)
        return parser

    def read_line(self, argv: Sequence[str]) -> list[tuple[str, dict]]:
        """Layers of the command line: its `--config` files, then its flags."""
        flags, loose = split_line(argv)
        files = [(value, read_config(value, self.name)) for key, values in flags if key == "config" for value in values]
        given = [(key, values) for key, values in flags if key not in OURS]
        named = {key: values[0] for key, values in given if values and is_choice(self.hints.get(key))}
        choices, _ = as_choices([*files, ("", named)], self.hints)
        for name, parameter in self.parameters.items():
            if is_choice(self.hints[name]) and isinstance(parameter.default, str):
                choices.setdefault(name, parameter.default)
        layer: dict[str, Any] = {}
        for key, values in given:
            hint = check_key(key, self.hints, choices, "")
            value, rest = take(key, values, hint)
            layer[key] = layer[key] + value if isinstance(layer.get(key), list) and isinstance(value, list) else value
            loose += rest
        positional = [name for name in self.parameters if self._is_positional(name)]
        if loose and not positional:
            raise PeftError(f'"{loose[0]}" belongs to no option: see `{self.name} --help`.')
        if loose:
            many = takes_many(self.hints[positional[0]])
            if not many and len(loose) > 1:
                raise PeftError(f'"{loose[1]}" is one too many: {self.name} takes one {positional[0]}.')
            layer[positional[0]] = loose if many else loose[0]
        return [*files, ("", layer)]

    def help(self, program: str, argv: Sequence[str] = ()) -> str:
        """The options in words, those of the names on the line (`--method lora`) included."""
        flags, _ = split_line(argv)
        choices = {
            n: p.default for n, p in self.parameters.items() if is_choice(self.hints[n]) and isinstance(p.default, str)
        }
        choices |= {key: words[0] for key, words in flags if words and is_choice(self.hints.get(key))}
        parser = self.parser(choices)
        positional = [name for name in self.parameters if self._is_positional(name)]
        words = [f"{name.upper()} ..." if takes_many(self.hints[name]) else name.upper() for name in positional]
        parser.usage = " ".join([program, self.name, *words, "[options]"])
        about = argument_docs(self.function)
        for action in parser._actions:
            if is_choice(self.hints.get(action.dest)) and self.hints[action.dest].named:
                action.metavar, action.help = "NAME", about.get(action.dest, "")
        return parser.format_help()


def command(domain: str, default_recipe: Callable[[dict], str | None] | None = None) -> Callable[[Callable], Command]:
    """Makes a function a command. `domain` is the folder of its configs; `default_recipe` names the recipe to use
    where none is given, from the arguments as far as they are known."""
    return lambda function: Command(function, domain, default_recipe)
