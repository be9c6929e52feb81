"""The exception tree.

    RankstillError            anything this project raises on purpose; exit code 1
    ├── InputError            the user's input is at fault; exit code 2
    │   ├── ConfigError       a config file, key or value          (also a ValueError)
    │   ├── DataError         a judgement, item or label file      (also a ValueError)
    │   ├── ModelError        a model name, folder or artifact     (also a ValueError)
    │   │   └── ConversionError   a model that a runtime can't run
    │   ├── AddressError      a host or port that can't be used    (also an OSError)
    │   └── BudgetError       limits that no student meets
    └── RunError              a run that could not go on           (also a RuntimeError)
        └── DamagedError      stored data that can't be read

Every message is one line that names the field, its value and the remedy. Each error is built from that one
message, so it survives the pickling between Ray processes.
"""


class RankstillError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = 1


class InputError(RankstillError):
    """The user's input is at fault; a command ends with exit code 2."""

    exit_code = 2


class ConfigError(InputError, ValueError):
    """A config file, key or value that can't be used."""


class DataError(InputError, ValueError):
    """A data file or its rows can't be used."""


class ModelError(InputError, ValueError):
    """A model reference, folder or artifact can't be used."""


class ConversionError(ModelError):
    """A model that a runtime can't run."""


class AddressError(InputError, OSError):
    """A host or port can't be listened on."""


class BudgetError(InputError):
    """Limits that no student meets."""


class RunError(RankstillError, RuntimeError):
    """A run that could not go on: a diverged training, a score that is not a number."""


class DamagedError(RunError):
    """Stored data that can't be read as they were written."""


class GateError(RankstillError):
    """A model that is not good enough to go on with."""


def in_brief(error: BaseException, most: int = 200) -> str:
    """What an error of a library says, on one line of at most `most` characters: how it begins, and how it ends.

    One that says nothing is told by its name.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"
