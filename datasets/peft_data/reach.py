"""Where data is kept, and how long a hub may take to answer: two environment variables, the same for all programs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from peft_data.errors import DataError


def cache_root() -> Path:
    """`$VISUAL_PEFT_CACHE`, else `$XDG_CACHE_HOME/visual-peft`, else `~/.cache/visual-peft`."""
    if given := os.environ.get("VISUAL_PEFT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "visual-peft"


def deadline() -> float:
    """Seconds after which a hub counts as out of reach: `$VISUAL_PEFT_WAIT`, else 10.

    Raises:
        DataError: the variable is no number of seconds above 0.
    """
    given = os.environ.get("VISUAL_PEFT_WAIT") or "10"
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise DataError(f"the environment variable VISUAL_PEFT_WAIT must be seconds above 0, not {given!r}")
    return seconds


def unreachable(address: str) -> str | None:
    """Why an address gives no answer within the deadline, in a few words; None where it gives one, whatever it is.

    A hub's own client asks several times, which takes half a minute where there is no network.
    """
    seconds = deadline()
    reasons: list[str] = []

    def ask() -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=seconds).close()
        except HTTPError:
            pass  # it answered
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "reason", error)))
        reasons.append("")

    thread = threading.Thread(target=ask, daemon=True)  # looking up a host's name knows no time limit
    thread.start()
    thread.join(seconds)
    return (reasons[0] or None) if reasons else f"no answer in {seconds:g} s"
