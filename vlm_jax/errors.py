"""Errors that are meant for the user: one line that names the file or key, what was found, and what was expected."""


class UserError(ValueError):
    """Base class of all errors whose message is written for the person who runs a command."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message has the pip command."""


class ConfigError(UserError):
    """A config or an option that cannot be used."""


class DataError(UserError):
    """A data set that cannot be used."""
