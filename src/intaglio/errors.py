"""Every error that intaglio raises on purpose. Each message says what was wrong, where, and what to do."""


def printable(text: str) -> str:
    """The text, blank where it can't be printed: what strangers' files and servers say must not steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def one_line(text: str) -> str:
    """The printable part of a text, on one line."""
    return " ".join(printable(text).split())


class IntaglioError(Exception):
    """Base class: the command line prints its message as one line and exits with 2."""


class DataError(IntaglioError):
    """Images or labels that can't be used: missing, damaged, of the wrong size or outside their bounds."""


class ModelError(IntaglioError):
    """A model file that can't be opened: missing, damaged, of an unknown format or architecture."""


class UnsafeFileError(ModelError):
    """A file that could only be opened by executing what is inside, or that points outside its own folder."""


class ClassifierError(IntaglioError):
    """A classifier that answers with the wrong shape, with NaN, or that doesn't offer the access a method needs."""


class RecipeError(IntaglioError):
    """A recipe or a parameter with a value that makes no sense."""


class StorageError(IntaglioError):
    """An output that can't be written: no space, no permission, not a folder."""


class KeyFileError(IntaglioError):
    """A key file that is missing, damaged, or whose passphrase is wrong."""


class EvidenceError(IntaglioError):
    """A commitment, statement, time stamp or registry that is damaged, changed, spent, or not of this version."""


class RemoteError(ClassifierError):
    """A remote model that hangs, refuses, redirects elsewhere, or answers garbage."""


class NothingToExamineError(IntaglioError):
    """There is nothing here to work on (exit code 3)."""


#: What somebody else's module may raise where it can't take its inputs.
FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
