"""Duplicates in a collection of texts: equal ones, near ones by MinHash, repeated parts by suffix arrays.

>>> from pylm import dedup
>>> texts = ["a b c d e f g h i j", "A b c d e f g h i j!", "nothing like the others"]
>>> dedup.near(texts).keep.tolist()
[True, False, True]
"""

from pylm.text._exact import (
    BatchDuplicates,
    BloomFilter,
    PartDuplicates,
    PartUnit,
    exact,
    exact_batches,
    exact_parts,
    hash_texts,
)
from pylm.text._minhash import MinHasher, Scheme, Unit
from pylm.text._near import Keep, NearDuplicates, match_probability, near, optimal_bands
from pylm.text._near_index import IndexDuplicates, Matches, NearIndex, ShingleBits
from pylm.text._substring_index import HashBits, SubstringIndex
from pylm.text._substrings import KeepCopies, Method, Spans, Tokens, substrings
from pylm.text._suffix_arrays import Symbols, lcp_array, suffix_array
from pylm.text._urls import normalize_url

__all__ = [
    "BatchDuplicates",
    "BloomFilter",
    "HashBits",
    "IndexDuplicates",
    "Keep",
    "KeepCopies",
    "Matches",
    "Method",
    "MinHasher",
    "NearDuplicates",
    "NearIndex",
    "PartDuplicates",
    "PartUnit",
    "Scheme",
    "ShingleBits",
    "Spans",
    "SubstringIndex",
    "Symbols",
    "Tokens",
    "Unit",
    "exact",
    "exact_batches",
    "exact_parts",
    "hash_texts",
    "lcp_array",
    "match_probability",
    "near",
    "normalize_url",
    "optimal_bands",
    "substrings",
    "suffix_array",
]
