"""Errors that are the user's to fix. Each message is one line: what, where from, and what would do."""


class D3JaxError(Exception):
    """Ends `python -m d3jax.run` with its `exit_code` and its message, without a traceback."""

    exit_code = 1


class ConfigError(D3JaxError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class DataError(D3JaxError):
    """A data set cannot be read or contradicts itself."""

    exit_code = 2


class AttackError(D3JaxError):
    """An attack that this data set does not allow."""

    exit_code = 2


class CheckpointError(D3JaxError):
    """A checkpoint is missing, damaged or of another model."""

    exit_code = 2


class DamagedError(CheckpointError):
    """A checkpoint cannot be read or does not match its checksum."""


class DivergedError(D3JaxError):
    """A loss became NaN or infinite; the last checkpoint before it is kept."""


class OutOfMemoryError(D3JaxError):
    """A program does not fit the device's memory."""
