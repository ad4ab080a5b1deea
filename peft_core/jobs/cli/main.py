"""One command line for all three programs: `main(program, commands)` runs the functions made by `@command`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from peft_core.errors import PeftError, nearest
from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.line import summary


def main(program: str, commands: Sequence[Command], argv: Sequence[str] | None = None, errors: tuple = ()) -> int:
    """Runs one command line. Returns what the command returns if that is an int, else 0; 2 after a mistake of the
    user's (`PeftError` and `errors`, told in one sentence, with a traceback where `--debug` is given); 130 or 143
    when stopped."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    by_name = {each.name: each for each in commands}
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(overview(program, by_name))
            return 0
        if argv[0] not in by_name:
            raise PeftError(
                f'unknown command "{argv[0]}"{nearest(argv[0], by_name)} (there are: {", ".join(by_name)}).'
            )
        chosen = by_name[argv[0]]
        if "-h" in argv or "--help" in argv:
            print(chosen.help(program, [word for word in argv[1:] if word not in ("-h", "--help")]))
            return 0
        result = chosen.function(**chosen.resolve(chosen.read_line(argv[1:])))
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except BrokenPipeError:  # the reader has seen enough
        sys.stdout = open(os.devnull, "w")
        return 0
    except (PeftError, OSError, *errors) as error:
        if debug:
            raise
        print(f"{program}: {say(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return stop.args[0] if stop.args else 130


def say(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error).strip().replace("?.", "?") or type(error).__name__


def overview(program: str, commands: Mapping[str, Command]) -> str:
    lines = [f"  {name:<8} {summary(each.function)}" for name, each in commands.items()]
    return "\n".join(
        [f"usage: {program} COMMAND [options]", "", *lines, "", f"`{program} COMMAND --help` lists its options."]
    )
