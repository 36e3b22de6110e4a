"""Accuracy at equal size: methods compared on the same networks, data, steps and bits.

A `Study` says what is compared; `run` measures its rows, each once; `write_report` turns rows into tables and
plots. `mvq bench accuracy` is these three.
"""

from mvq.bench.builtin import digits_study
from mvq.bench.methods import LEARNED, METHODS, Method, Point, own_masks
from mvq.bench.report import write_report
from mvq.bench.rows import Rows
from mvq.bench.runner import run
from mvq.bench.study import Study

__all__ = [
    "LEARNED",
    "METHODS",
    "Method",
    "Point",
    "Rows",
    "Study",
    "digits_study",
    "own_masks",
    "run",
    "write_report",
]
