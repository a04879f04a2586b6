"""Deduplication of a corpus in files, larger than memory, in stages that any executor runs."""

from pylm.data.dedup.exact import ExactDedupConfig, dedup_exact
from pylm.data.dedup.near import NearDedupConfig, dedup_near
from pylm.data.dedup.substring_stages import SubstringDedupConfig
from pylm.data.dedup.substrings import dedup_substrings

__all__ = [
    "ExactDedupConfig",
    "NearDedupConfig",
    "SubstringDedupConfig",
    "dedup_exact",
    "dedup_near",
    "dedup_substrings",
]
