"""What masked vector quantization is compared with, on the same parts."""

from mvq.baselines.conventional import CASES, CaseReport, ablation, case_, cluster_conventional, equal_size

__all__ = ["CASES", "CaseReport", "ablation", "case_", "cluster_conventional", "equal_size"]
