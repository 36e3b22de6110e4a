"""Every error the library raises on bad input: where, what was given, the rule, the remedy.

All derive from `MvqError`, itself a `ValueError`, so callers can catch one class; the command line prints the
text of an `MvqError` without a traceback.
"""


class MvqError(ValueError):
    """Base of all errors that bad input causes."""


class ConfigError(MvqError):
    """A recipe, pattern or option is contradictory, unknown or out of range."""


class FewDistinctError(ConfigError):
    """A codebook is larger than the number of distinct subvectors, which `distinct` tells."""

    distinct: int = 0


class ShapeError(MvqError):
    """An array or tensor has a shape or dtype that the operation does not accept."""


class WeightError(MvqError):
    """A weight holds values that cannot be compressed (NaN or infinity)."""


class ModelError(MvqError):
    """A model does not fit the request: no eligible layer, wrong state, names or shapes that do not match."""


class PsumOverflowError(MvqError):
    """A sum does not fit the accumulator of an integer network."""


class DataError(MvqError):
    """A data set cannot be found or read."""


class MissingDependencyError(MvqError):
    """An optional package is needed; the message names the line that installs it."""


class FileError(MvqError):
    """A file cannot be opened, read or written; the text ends with what the system said."""


class FormatError(MvqError):
    """A `.mvq` file is damaged or not one."""


class BadMagicError(FormatError):
    """The file is not a safetensors file with an mvq header."""


class UnsupportedVersionError(FormatError):
    """The file was written by a format version this reader does not know."""


class TruncatedError(FormatError):
    """The file ends before the data its header announces."""


class OversizedError(FormatError):
    """The file is longer than its header announces, or announces more than the limits allow."""


class OverlapError(FormatError):
    """Two tensors claim the same bytes, or bytes belong to none."""


class HeaderError(FormatError):
    """The header is not valid: JSON, keys, types, ranges or counts."""


class DigestError(FormatError):
    """Stored data does not match its digest."""


class StreamError(FormatError):
    """A decoded value is out of range (assignment, mask id, scale)."""
