"""The `.mvq` file: a compressed network as one safetensors file. Normative text: `docs/spec/format.md`."""

from mvq.format.reader import MvqFile, open_file, read
from mvq.format.writer import to_bytes, write

__all__ = ["MvqFile", "open_file", "read", "to_bytes", "write"]
