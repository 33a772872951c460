"""What every command of d3jax does around its work: one line for what went wrong, and an exit code.

0 done; 1 something failed; 2 a mistake in what was given; 75 stopped by a signal, to be run again;
130 interrupted at once. No jax.
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
    """A parser whose errors are one line, as all others."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


def exit_code(work: Callable[[], int]) -> int:
    """Do the work of a command; return its exit code. What no user can have caused is raised."""
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
        path = error.filename2 or error.filename  # of a renaming, the name it was to get
        if not path:
            raise
        return _say(f"{path}: cannot be used ({error.strerror})", 1)


def program(main: Callable[[], int]) -> typing.NoReturn:
    """Run a command as the whole program; warnings are lines without the code they come from."""
    warnings.showwarning = lambda message, *_, **__: _say(message, 0)
    sys.exit(main())


def _say(text: object, code: int) -> int:
    print(f"d3jax: {text}", file=sys.stderr, flush=True)
    return code
