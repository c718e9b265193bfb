"""Errors for the user: one line that names the file or key, what was found, and what was expected."""


class UserError(ValueError):
    """Base class of all errors whose message is written for the person who runs a command."""


class MissingPackageError(UserError, ImportError):
    """Missing optional package; the message has the pip command."""


EXTRAS = {
    "tensorflow": "data",
    "tensorflow_datasets": "data",
    "av": "video",
    "apache_beam": "beam",
    "sklearn": "eval",
    "lmdb": "lmdb",
    "matplotlib": "figures",
    "PIL": "figures",
    "cv2": "people",
    "sentencepiece": "text",
    "spacy": "words",
    "nltk": "words",
}
"""Extra of vlm_jax that installs an optional package, by the package's name."""


def missing_package(error: ImportError) -> ImportError:
    """Return the error to raise for a failed import: one with the pip command for an optional package, else itself."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return error
    return MissingPackageError(f"this needs the package {package}: pip install 'vlm_jax[{EXTRAS[package]}]'")


class ConfigError(UserError):
    """Config or option that cannot be used."""


class DataError(UserError):
    """Data set that cannot be used."""
