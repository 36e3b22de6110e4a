"""Codebook quantization: float codewords to int8 codes with one scale."""

from mvq.codebook.int8 import fit_int8, quantize

__all__ = ["fit_int8", "quantize"]
