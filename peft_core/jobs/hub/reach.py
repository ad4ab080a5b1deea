"""Reaching a hub: what is cached already, how long to wait, and which files are pickles."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import HF
from peft_core.values import Positive, typed

WAIT = "VISUAL_PEFT_WAIT"
"""The environment variable with the seconds after which a hub counts as out of reach; `--wait` sets it."""
SECONDS = 10.0
INSTEAD = "--backbone a folder, ARCHITECTURE@FILE.safetensors, or `reference`"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
"""Endings of files that can run code when they are loaded."""


def deadline() -> float:
    """Seconds that a hub has to answer.

    Raises:
        PeftError: the environment variable is no number above 0.
    """
    return typed(os.environ.get(WAIT) or SECONDS, Positive, WAIT)


def in_cache(repository: str, filename: str) -> str | None:
    """The file of a repository in the hub's cache on this machine; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository.partition("@")[0], filename)
    except HFValidationError as error:
        raise PeftError(f'"{repository}" is no name of a model on the Hugging Face hub: it is owner/model.') from error
    return found if isinstance(found, str) else None


def must_reach(name: str, repository: str | None, url: str | None = None, instead: str = INSTEAD) -> None:
    """Asks the hub for a sign of life, because its own client retries for most of a minute.

    Args:
        instead: what the user can give in place of a hub's name.

    Raises:
        PeftError: no answer within `deadline()` seconds.
    """
    from huggingface_hub import constants

    address, seconds = constants.ENDPOINT if repository else url, deadline()
    reason: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(str(address), method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # it answered
        except OSError as error:
            reason.append(str(getattr(error, "reason", error)))
        reason.append("")

    if repository and constants.HF_HUB_OFFLINE:
        reason.append("HF_HUB_OFFLINE is set")
    else:
        thread = threading.Thread(target=ask, daemon=True)  # looking up a host's name knows no time limit
        thread.start()
        thread.join(seconds)
        reason = reason or [f"no answer in {seconds:g} s; --wait SECONDS or {WAIT} gives it longer"]
    if reason[0]:
        fetch = f"`hf download {repository}`" if repository else f"download {url}"
        raise PeftError(
            f"the weights of {name} are not on this machine and {address} cannot be reached ({reason[0]}): fetch them "
            f"where there is a network with {fetch} and bring the cache ({constants.HF_HUB_CACHE}) here, or give "
            f"{instead}."
        )


def absolute(spec: str) -> str:
    """A backbone with its path, where it has one, made absolute, so that the run can be used from another folder."""
    if spec.startswith(("hf-hub:", "hf_hub:")):
        return spec
    if spec.startswith(HF):
        return HF + absolute(spec.removeprefix(HF))
    architecture, at, file = spec.rpartition("@")
    if at:
        return f"{architecture}@{Path(file).expanduser().absolute()}"
    is_path = spec.startswith(("./", "../", "~")) or ("/" in spec and Path(spec).is_dir())
    return str(Path(spec).expanduser().absolute()) if is_path else spec
