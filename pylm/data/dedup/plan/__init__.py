"""Plans: what a deduplication will take, said from a sample before it is run."""

from pylm.data.dedup.plan.near import NearRates, measure_near, plan_near, predict_near
from pylm.data.dedup.plan.report import Plan, Range, StagePlan
from pylm.data.dedup.plan.sample import Rates
from pylm.data.dedup.plan.substrings import (
    SubstringRates,
    measure_substrings,
    plan_substrings,
    predict_substrings,
)

__all__ = [
    "NearRates",
    "Plan",
    "Range",
    "Rates",
    "StagePlan",
    "SubstringRates",
    "measure_near",
    "measure_substrings",
    "plan_near",
    "plan_substrings",
    "predict_near",
    "predict_substrings",
]
