"""One command line for all three programs: `main(program, commands)` runs the functions made by `@command`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import peft_core
from peft_core.errors import PeftError, nearest
from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.help import help_of, overview
from peft_core.jobs.hub.reach import WAIT, deadline
from peft_core.jobs.runs import lean


def main(program: str, commands: Sequence[Command], argv: Sequence[str] | None = None, errors: tuple = ()) -> int:
    """Runs one command line. Returns what the command returns if that is an int, else 0; 2 after a mistake of the
    user's (`PeftError`, `DataError` and `errors`, told in one sentence, with a traceback where `--debug` is given); 130 or 143
    when stopped."""
    from peft_data.errors import DataError

    if argv is None:
        in_utf8()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # other libraries import it where it is installed
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    by_name = {each.name: each for each in commands}
    for stream in (sys.stdout, sys.stderr):  # a locale without UTF-8 must not stop a run at the print of a name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore
    try:
        with told_to_stop():
            return run(program, by_name, argv)
    except BrokenPipeError:  # the reader has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 0
    except (PeftError, DataError, OSError, *errors) as error:
        if debug:
            raise
        print(f"{program}: {say(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        code, *sentence = stop.args or (130,)
        print(f"{program}: stopped{''.join(f'; {each}' for each in sentence)}.", file=sys.stderr)
        return code


def in_utf8() -> None:
    """Starts the program again with UTF-8 for files and their names, where the locale has another encoding: class folders
    and pictures keep their names, and what is written is the same everywhere."""
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8") and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run(program: str, commands: dict[str, Command], argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(program, commands))
        return 0
    if argv[0] in ("--version", "-V", "version"):
        print(f"{program} {peft_core.__version__}")
        return 0
    if argv[0] not in commands:
        raise PeftError(f'unknown command "{argv[0]}"{nearest(argv[0], commands)} (there are: {", ".join(commands)}).')
    words = without_wait(argv[1:])
    rest = [word for word in words if word not in ("-h", "--help", "all")]
    chosen = commands[argv[0]].of_line(rest, program)
    if "-h" in words or "--help" in words:
        after = [words[at + 1 : at + 2] for at, word in enumerate(words) if word in ("-h", "--help")]
        print(help_of(chosen, program, rest, everything=["all"] in after))
        return 0
    lean.own_process = True
    result = chosen.call(chosen.resolve(chosen.read_line(words, program)))
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def without_wait(words: list[str]) -> list[str]:
    """The words without `--wait SECONDS`, which goes into the environment that workers inherit."""
    for number, word in enumerate(words):
        if word == "--wait" or word.startswith("--wait="):
            value = word.partition("=")[2] or "".join(words[number + 1 : number + 2])
            os.environ[WAIT] = value or "nothing"
            deadline()
            return words[:number] + words[number + (1 if "=" in word else 2) :]
    return words


@contextlib.contextmanager
def told_to_stop() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, with a word and exit code 143."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(error: BaseException) -> str:
    """An error in one sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split("\n")).strip().replace("?.", "?") or type(error).__name__
