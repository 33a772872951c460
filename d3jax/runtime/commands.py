"""The error messages and exit codes that all commands of d3jax share.

An error that a user can cause is printed as one line. Does not import jax. The exit codes are:

- 0: done
- 1: something failed
- 2: a mistake in the user's input
- 75: stopped by a signal, to be run again
- 130: interrupted at once
"""

from __future__ import annotations

import argparse
import sys
import typing
import warnings
from collections.abc import Callable

from ..core.errors import ConfigError, D3JaxError
from .files import storage_error
from .output import accept_any_text, drop_output


class Parser(argparse.ArgumentParser):
    """An argument parser of commands that raises `ConfigError` for a wrong command line."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise `ConfigError` for a wrong command line, where argparse would print and exit."""
        raise ConfigError(message)


def exit_code(work: Callable[[], int]) -> int:
    """Run the function `work` of a command, print its error as one line, and return the exit code.

    Errors that a user cannot cause are raised instead.
    """
    accept_any_text()
    try:
        return work()
    except D3JaxError as error:
        return _say(error, error.exit_code)
    except BrokenPipeError:  # `… --list | head`
        drop_output()
        return 0
    except KeyboardInterrupt:
        return _say("interrupted; run the same command again to continue", 130)
    except OSError as error:
        if full := storage_error(error):
            return _say(full, full.exit_code)
        path = error.filename2 or error.filename  # for a rename, filename2 is the new name
        if not path:
            raise
        return _say(f"{path}: cannot be used ({error.strerror})", 1)


def program(main: Callable[[], int]) -> typing.NoReturn:
    """Run a command's `main` and exit the process, with every warning printed as one line."""
    warnings.showwarning = lambda message, *_, **__: _say(message, 0)
    sys.exit(main())


def _say(text: object, code: int) -> int:
    """Print a line that begins with "d3jax:" to standard error, and return the exit code `code`."""
    print(f"d3jax: {text}", file=sys.stderr, flush=True)
    return code
