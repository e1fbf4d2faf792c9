"""`ops`: one module per noun. Modules import only what their help needs; a command imports the rest when it runs."""

from __future__ import annotations

import os
import sys

from db.errors import DatabaseUnavailable, OpsError
from worker.cli.output import out


def main() -> None:
    """The console script. Every error a user can cause ends in one line and its exit code."""
    arguments = _take_json(sys.argv[1:])
    from worker.cli.root import app

    try:
        code = app(args=arguments, prog_name="ops", standalone_mode=False)
    except KeyboardInterrupt:
        out.note("stopped")
        code = 4
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except OpsError as error:
        code = _say(error)
    except Exception as error:  # noqa: BLE001 - sorted below
        code = _explain(error)
    _flush()
    sys.exit(code if isinstance(code, int) else 0)


def _take_json(arguments: list[str]) -> list[str]:
    """`--json` means the same wherever it stands before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--json" in arguments[:end]:
        out.json = True
    return [word for word in arguments[:end] if word != "--json"] + arguments[end:]


def _say(error: OpsError) -> int:
    hint = error.hint
    if isinstance(error, DatabaseUnavailable):
        from worker.cli.failures import what_to_do

        hint = what_to_do(error)
    out.error(str(error), hint, error.exit_code)
    return error.exit_code


def _explain(error: Exception) -> int:
    """What a library raised, in one line: usage errors of the command line, and what a database says."""
    exit_code = getattr(error, "exit_code", None)
    if hasattr(error, "format_message") and isinstance(exit_code, int):
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context is not None else None
        message = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
            if not out.json:
                sys.stderr.write(message + "\n")
                return exit_code
            message = "a command is missing"
        out.error(message, hint, exit_code)
        return exit_code
    if type(error).__name__ == "Abort":
        out.note("stopped")
        return 4
    from worker.cli.failures import explain

    known = explain(error)
    if known is not None:
        return _say(known)
    if os.environ.get("DEBUG", "").lower() in ("1", "true", "yes"):
        raise error
    first = (str(error).strip() or "no message").splitlines()[0][:300]
    out.error(f"unexpected {type(error).__name__}: {first}", "DEBUG=true ops ... shows where", 3)
    return 3


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
