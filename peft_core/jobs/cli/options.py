"""Options that a name brings along: `--method lora --method.rank 4`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

from peft_core.config_files import list_configs
from peft_core.errors import PeftError, nearest
from peft_core.registry import find_method, make_method, method_files, read_preset
from peft_core.values import defaults_of, hints_of, is_list, parts_of

if TYPE_CHECKING:  # a program answers without waiting for torch
    from peft_core.method import Method


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
    brief: ClassVar[bool] = False
    """Whether `--help` names the group in a line, and `--help all` its options."""
    hidden: ClassVar[frozenset[str]] = frozenset()
    """Arguments of `accepts` that are no options."""

    @classmethod
    def accepts(cls, name: str) -> Callable:
        raise NotImplementedError

    @classmethod
    def check_name(cls, name: str, domain: str) -> None:
        """Raises PeftError for a name that programs of this domain (`vision`, `clip`, `diffusion`) do not take."""

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """Values that the name itself sets."""
        return {}

    def plain(self) -> dict[str, Any]:
        """As it stands in a YAML file."""
        return ({"name": self.name} if self.named else {}) | self.options

    def all(self) -> dict[str, Any]:
        """What was given, and the defaults."""
        usual = defaults_of(self.accepts(self.name))
        return {key: value for key, value in usual.items() if key not in self.hidden} | self.options

    def check(self) -> None:
        """Raises PeftError for options that do not go together; called once they all are typed."""


class MethodChoice(Choice):
    """`--method lora --method.rank 4`: a method, a preset of configs/*/method, or a preset's path."""

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return find_method(_split(name)[0])

    @classmethod
    def check_name(cls, name: str, domain: str) -> None:
        domain = domain.partition("/")[0]
        files, presets = method_files(), list_configs("method", domain)
        others = {f"{one}_peft" for one in ("vision", "clip", "diffusion")} - {f"{domain}_peft"}
        own = sorted(each for each, place in files.items() if place.partition(".")[0] not in others)
        if name in own or name in presets or read_preset(name) is not None:
            return
        if name in files:
            program = files[name].partition(".")[0]
            raise PeftError(f"{name} is a method of {program}, not of {domain}_peft: see `{domain}_peft list methods`.")
        likely = nearest(name, [*own, *presets])
        raise PeftError(f'unknown method "{name}"{likely} (known: {", ".join(own)}; presets: see `list methods`).')

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        return dict(_split(name)[1])

    @functools.cached_property
    def _method(self) -> Method:
        return make_method(self.name, **self.options)

    def build(self) -> Method:
        """The method, made once."""
        return self._method

    def check(self) -> None:
        self.build()


def _split(name: str) -> tuple[str, Mapping[str, Any]]:
    """A method's name and the settings that a preset gives it."""
    preset = None if name in method_files() else read_preset(name)
    if preset is None:
        return name, {}
    return preset["method"], {key: value for key, value in preset.items() if key != "method"}


def is_choice(hint: Any) -> TypeGuard[type[Choice]]:
    """Whether an option's type is a group of options."""
    return isinstance(hint, type) and issubclass(hint, Choice)


@functools.cache
def hints(target: Callable) -> dict[str, Any]:
    """Option -> annotation of a function, class or dataclass; `X | None` of a Choice is X."""
    found = {}
    for name, hint in hints_of(target).items():
        groups = [part for part in parts_of(hint) if is_choice(part)]
        found[name] = groups[0] if groups else hint
    return found


def options_of(kind: type[Choice], name: str) -> dict[str, Any]:
    """Option -> annotation of a group, for this name of it."""
    return {key: hint for key, hint in hints(kind.accepts(name)).items() if key not in kind.hidden}


def takes_many(hint: Any, also: bool = False) -> bool:
    """Whether an option's value is a list (`also`: may be one, beside a single value)."""
    found = [is_list(part) for part in parts_of(hint) if part is not type(None)]
    return bool(found) and (any(found) if also else all(found))


def as_choices(
    layers: Sequence[tuple[str, Mapping[str, Any]]], known: Mapping[str, Any]
) -> tuple[dict[str, str], list[tuple[str, dict]]]:
    """The name chosen last for every Choice, and the layers with `{option: value}` in the names' places. Options that
    were given for another name than the last are dropped."""
    names: dict[str, str] = {}
    result: list[tuple[str, dict]] = []
    for where, given in layers:
        layer = {str(key): value for key, value in given.items()}
        for key, hint in known.items():
            if key not in layer or not is_choice(hint):
                continue
            options = _as_options(layer[key], key, where)
            name = options.pop("name", None) if hint.named else None
            if name is not None and str(name) != names.get(key):
                for _, earlier in result if key in names else ():
                    for stale in [k for k in earlier if k == key or k.startswith(f"{key}.")]:
                        del earlier[stale]
                names[key] = str(name)
            layer[key] = options
        result.append((where, layer))
    return names, result


def _as_options(value: Any, key: str, where: str) -> dict[str, Any]:
    """`{name: …, option: …}` of a name, a Choice, a method, or a mapping."""
    if isinstance(value, Choice):
        return value.plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a Method
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {"name": value.name} | fields  # type: ignore[attr-defined]
    if isinstance(value, str):
        return {"name": value}
    if value is None or isinstance(value, Mapping):
        return {str(option): inner for option, inner in (value or {}).items()}
    raise PeftError(f'{key}{f" in {where}" if where else ""} takes a name or a name with options, not "{value}".')


def flatten(layer: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(`method.rank`, 4) for `{method: {rank: 4}}`, one level deep."""
    for key, value in layer.items():
        if is_choice(known.get(key)):
            yield from ((f"{key}.{option}", inner) for option, inner in value.items())
        else:
            yield key, value


SAME = (
    {"epochs", "max_epochs", "num_epochs", "num_train_epochs", "trainer.max_epochs"},
    {"steps", "max_steps", "max_train_steps", "num_inference_steps", "sample_steps", "trainer.max_steps"},
    {"lr", "learning_rate"}, {"batch_size", "batch", "bs", "train_batch_size"}, {"out", "output", "output_dir", "outdir"},
    {"backbone", "base", "model", "model_name", "pretrained_model_name_or_path"},
    {"data", "dataset", "data_dir", "train_data_dir", "instance_data_dir"},
    {"method.rank", "rank", "r", "lora_rank", "network_dim"}, {"method.alpha", "alpha", "lora_alpha", "network_alpha"},
    {"save_every", "checkpointing_steps"}, {"prompt", "instance_prompt"}, {"trainer.precision", "precision", "mixed_precision"},
    {"trainer.devices", "devices", "gpus"}, {"trainer.accelerator", "accelerator", "device"}, {"seed", "random_seed"},
    {"data.workers", "num_workers", "workers"}, {"weight_decay", "wd"}, {"template", "ctx_init"},
)  # fmt: skip
"""What other programs call an option, for a hint."""


def check_unused(settings: Mapping[str, Any], unused: Mapping[str, str]) -> None:
    """Raises PeftError: an option has another value than its default in a group that a run has no use for.

    Args:
        unused: such groups, and what they are for.
    """
    for group, purpose in unused.items():
        usual = defaults_of(settings[group].accepts(""))
        for option, value in settings[group].options.items():
            if value != usual[option]:
                raise PeftError(
                    f"--{group}.{option} has no effect on this run, --{group} is for {purpose}: leave it out."
                )


def check_key(key: str, known: Mapping[str, Any], choices: Mapping[str, str], where: str) -> Any:
    """The annotation of option `key`; PeftError with the nearest option if there is none."""
    group, _, option = key.partition(".")
    hint: Any = known.get(group)
    if hint is not None and not option:
        return hint
    likely, listed = _nearest_option(key, known, choices), ""
    if is_choice(hint) and option and (group in choices or not hint.named):
        inner = options_of(hint, choices.get(group, ""))
        if option in inner:
            return inner[option]
        likely = nearest(option, inner).replace('mean "', f'mean "{group}.') or likely
        of = f" of {choices[group]}" if group in choices else ""
        listed = f" (its options{of}: {', '.join(inner) or 'none'})" if len(inner) <= 16 else ""
    if where:
        raise PeftError(f'unknown option "{key}" in {where}{likely}{listed}.')
    likely = likely.replace('mean "', 'mean "--')
    raise PeftError(f"unknown option --{key}{likely}{listed}.")


def _nearest_option(key: str, known: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """'' or the option that is meant: by what other programs call it, by its name within a group, by spelling."""
    inside = {
        f"{group}.{option}": option
        for group, hint in known.items()
        if is_choice(hint) and (group in choices or not hint.named)
        for option in options_of(hint, choices.get(group, ""))
    }
    options = [*known, *inside]
    for same in SAME:
        if key.replace("-", "_") in same and (
            meant := [option for option in options if option in same and option != key]
        ):
            return f', did you mean "{meant[0]}"?'
    named = [option for option, name in inside.items() if name == key]
    return f', did you mean "{named[0]}"?' if named else nearest(key, options)
