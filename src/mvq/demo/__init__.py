"""The embedded default: a small network on scikit-learn's handwritten digits, compressed in several ways.

Nothing is downloaded; the 1,797 images ship with scikit-learn. `mvq.demo:network` and `mvq.demo:digits` can be
named on the command line wherever a model or data is.
"""

from mvq.demo.digits import digits
from mvq.demo.network import network
from mvq.demo.pipeline import CASES, DENSE_EPOCHS, Case, CaseResult, DemoReport, LayerResult, run

__all__ = ["CASES", "DENSE_EPOCHS", "Case", "CaseResult", "DemoReport", "LayerResult", "digits", "network", "run"]
