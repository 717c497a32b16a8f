"""Figures of members and ensemble.

`MemberMetrics` and, for images of any number of labels, `LabelMetrics` gather theirs exactly over batches and
processes. The other functions take the logits or confidences of all samples at once and compute in float64:
calibration, temperature, Brier score, risk under rejection, diversity of members.
"""

from timm_mix.metrics.calibration import (
    Bins,
    brier_score,
    calibration_bins,
    calibration_error,
    cross_fit_temperature,
    fit_temperature,
    risk_coverage,
)
from timm_mix.metrics.diversity import PairDiversity, pair_diversity
from timm_mix.metrics.labels import LabelMetrics, LabelScores
from timm_mix.metrics.members import MemberMetrics, Scores, evaluate_members

__all__ = [
    "Bins",
    "LabelMetrics",
    "LabelScores",
    "MemberMetrics",
    "PairDiversity",
    "Scores",
    "brier_score",
    "calibration_bins",
    "calibration_error",
    "cross_fit_temperature",
    "evaluate_members",
    "fit_temperature",
    "pair_diversity",
    "risk_coverage",
]
