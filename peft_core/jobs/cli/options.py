"""Options that a name brings along (`--method lora --method.rank 4`), and what to say about an option's type."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeGuard

from peft_core.errors import PeftError, nearest
from peft_core.method import Method
from peft_core.registry import find_method, list_methods, make_method, read_preset


@dataclass
class Choice:
    """A parameter whose value is a name with options: `--method lora --method.rank 4`, `{name: lora, rank: 4}`.

    A subclass says in `accepts` what takes the options: a function or class whose keyword arguments they are.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    named: ClassVar[bool] = True
    """False: options only, no name before them (`--trainer.max_epochs 5`)."""
    complete: ClassVar[bool] = True
    """Whether options that nobody gave are filled with their defaults."""
    hidden: ClassVar[frozenset[str]] = frozenset()
    """Arguments of `accepts` that are no options."""

    @classmethod
    def accepts(cls, name: str) -> Callable:
        raise NotImplementedError

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """Values that the name itself sets."""
        return {}

    def plain(self) -> dict[str, Any]:
        """As it stands in a YAML file."""
        return ({"name": self.name} if self.named else {}) | self.options


def hints(target: Callable) -> dict[str, Any]:
    """Option -> type of a function, class or dataclass, `X | None` for a Choice read as X."""
    inner = target.__init__ if isinstance(target, type) else target
    known = typing.get_type_hints(inner)
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = known.get(name, Any)
        parts = [part for part in typing.get_args(hint) if is_choice(part)]
        found[name] = parts[0] if parts else hint
    return found


def as_choices(
    layers: list[tuple[str, dict]], known: Mapping[str, Any]
) -> tuple[dict[str, str], list[tuple[str, dict]]]:
    """The name chosen last for every Choice, and the layers with `{option: value}` in the names' places. Options that
    were given for another name than the last are dropped."""
    names: dict[str, str] = {}
    result: list[tuple[str, dict]] = []
    for where, layer in layers:
        layer = dict(layer)
        for key, hint in known.items():
            if key not in layer or not is_choice(hint):
                continue
            value = layer[key]
            options = value.plain() if isinstance(value, Choice) else value
            options = {"name": options} if isinstance(options, str) else dict(options or {})
            name = options.pop("name", None) if hint.named else None
            if name is not None and str(name) != names.get(key):
                for _, earlier in result if key in names else ():
                    for stale in [k for k in earlier if k == key or k.startswith(f"{key}.")]:
                        del earlier[stale]
                names[key] = str(name)
            layer[key] = options
        result.append((where, layer))
    return names, result


def flatten(layer: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(`method.rank`, 4) for `{method: {rank: 4}}`, one level deep."""
    for key, value in layer.items():
        hint = known.get(key)
        if is_choice(hint):
            yield from ((f"{key}.{option}", inner) for option, inner in value.items())
        else:
            yield key, value


def is_choice(hint: Any) -> TypeGuard[type[Choice]]:
    """Whether an option's type is a group of options."""
    return isinstance(hint, type) and issubclass(hint, Choice)


def check_key(key: str, known: Mapping[str, Any], choices: Mapping[str, str], where: str) -> Any:
    """The type of option `key`; PeftError with the nearest option if there is none."""
    group, _, option = key.partition(".")
    hint: Any = known.get(group)
    if hint is not None and not option:
        return hint
    likely, listed = nearest(key, known), ""
    if is_choice(hint) and option and (group in choices or not hint.named):
        accepted = hints(hint.accepts(choices.get(group, "")))
        inner = {name: kind for name, kind in accepted.items() if name not in hint.hidden}
        if option in inner:
            return inner[option]
        likely = nearest(option, inner).replace('mean "', f'mean "{group}.')
        of = f" of {choices[group]}" if group in choices else ""
        listed = f" (its options{of}: {', '.join(inner) or 'none'})" if len(inner) <= 16 else ""
    if where:
        raise PeftError(f'unknown option "{key}" in {where}{likely}{listed}.')
    likely = likely.replace('mean "', 'mean "--')
    raise PeftError(f"unknown option --{key}{likely}{listed}.")


def takes_many(hint: Any, also: bool = False) -> bool:
    """Whether an option's value is a list (`also`: may be one, beside a single value)."""
    parts = [part for part in _parts(hint) if part is not type(None)]
    kinds = [typing.get_origin(part) or part for part in parts]
    found = [isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str for kind in kinds]
    return bool(found) and (any(found) if also else all(found))


def _parts(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", type(None): "null"}


def describe(hint: Any) -> str:
    """A type in words: "a number", "one of a, b"."""
    parts = [part for part in _parts(hint) if part is not type(None)]
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(describe(part) for part in parts))
    (part,) = parts or (hint,)
    if typing.get_origin(part) is typing.Literal:
        return "one of " + ", ".join(str(value) for value in typing.get_args(part))
    if takes_many(part):
        inner = [describe(each) for each in typing.get_args(part) if each is not ...]
        return "a list, each " + " or ".join(dict.fromkeys(inner)) if inner else "a list"
    if is_choice(part):
        return "a name"
    return WORDS.get(part, getattr(part, "__name__", str(part)))


class MethodChoice(Choice):
    """`--method lora --method.rank 4`: a method, a preset of configs/*/method, or a preset's path."""

    @classmethod
    def accepts(cls, name: str) -> Callable:
        preset = None if name in list_methods() else read_preset(name)
        return find_method(preset["method"] if preset else name)

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        preset = None if name in list_methods() else read_preset(name)
        return {key: value for key, value in (preset or {}).items() if key != "method"}

    def build(self) -> Method:
        return make_method(self.name, **self.options)


class TrainerFlags(Choice):
    """`--trainer.max_epochs 5`: the arguments of Lightning's Trainer, apart from those that the run folder decides."""

    named, complete = False, False
    hidden = frozenset(
        "logger callbacks plugins profiler default_root_dir enable_checkpointing enable_progress_bar barebones "
        "enable_model_summary num_sanity_val_steps use_distributed_sampler reload_dataloaders_every_n_epochs "
        "val_check_interval check_val_every_n_epoch log_every_n_steps limit_predict_batches inference_mode "
        "enable_autolog_hparams model_registry overfit_batches fast_dev_run limit_test_batches".split()
    )

    @classmethod
    def accepts(cls, name: str) -> Callable:
        from lightning.pytorch import Trainer

        return Trainer
