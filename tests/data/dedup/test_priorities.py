import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pylm.data.dedup import ExactDedupConfig, dedup_exact
from pylm.data.dedup.priorities import (
    LEAST,
    Priority,
    check_kinds,
    check_values,
    parse_priority,
    preference,
    priority_keys,
    values_of,
)
from pylm.errors import InputError

DAY = datetime.date(2024, 3, 1)


def ranked(rule: str, values: list[Any], kind: pa.DataType | None = None) -> list[Any]:
    """Values from the most preferred on, by the numbers."""
    batch = pa.record_batch({"x": pa.array(values, kind)})
    keys, _ = priority_keys(parse_priority(rule), batch, "file")
    order = preference(keys[:, None], np.arange(len(values)))
    return [values[i] for i in order]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3, -1, 2, 0, -(2**62), 2**62], pa.int64()),
        ([3, 0, 2**31], pa.uint64()),
        ([True, False], pa.bool_()),
        ([0.5, -1e300, math.inf, -math.inf, 0.0, 5e-324, -5e-324, 1.5], pa.float64()),
        ([0.5, -2.0, 1.25], pa.float16()),
        ([decimal.Decimal("1.50"), decimal.Decimal("-2.25")], pa.decimal128(9, 2)),
        ([DAY, datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)], pa.date32()),
        (
            [datetime.datetime(2024, 1, 1, i, tzinfo=datetime.UTC) for i in (5, 2, 9)],
            pa.timestamp("ns", "UTC"),
        ),
        (["2024-05-31", "1999-12-31", "2024-06-01 00:00:00"], pa.string()),
    ],
)
def test_order_of_values(values: list[Any], kind: pa.DataType) -> None:
    assert ranked("x", values, kind) == sorted(values, reverse=True)
    assert ranked("-x", values, kind) == sorted(values)
    assert ranked("x", [None, *values], kind)[-1] is None
    assert ranked("-x", [None, *values], kind)[-1] is None


def test_equal_values_keep_their_order() -> None:
    batch = pa.record_batch({"x": [0.0, -0.0, math.nan, None]})
    keys, kind = priority_keys(parse_priority("x"), batch, "file")
    assert keys.tolist() == [0, 0, LEAST, LEAST]
    assert kind == "number"


def test_times_of_zones() -> None:
    times = ["2024-01-01T12:00:00+02:00", "2024-01-01T11:00:00Z", "2024-01-01T10:30:00", "2024-01-01", ""]
    assert ranked("x", times) == [times[1], times[2], times[0], times[3], ""]


def test_named_order() -> None:
    assert ranked("x=wiki,books", ["web", "books", None, "wiki"]) == ["wiki", "books", "web", None]
    assert ranked("x=2,1", [1, 2, 3]) == [2, 1, 3]
    batch = pa.record_batch({"x": pa.array(["b", "a", "b"]).dictionary_encode()})
    assert priority_keys(parse_priority("x=b"), batch, "file")[0].tolist() == [0, -1, 0]


def test_meta_of_json_lines() -> None:
    metas = [{"x": 2, "y": "2024-01-01"}, {"x": 0.5}, {"z": 1}, {"x": True}]
    batch = pa.record_batch({"meta": [*(json.dumps(meta) for meta in metas), None]})
    keys, kind = priority_keys(Priority("x"), batch, "file")
    assert preference(keys[:, None], np.arange(5)).tolist() == [0, 3, 1, 2, 4]
    assert kind == "number"
    assert priority_keys(Priority("y"), batch, "file")[1] == "date"
    assert priority_keys(Priority("none"), batch, "file")[1] is None


def test_several_rules() -> None:
    keys = np.array([[1, 5], [2, 0], [1, 7], [2, 0]])
    assert preference(keys, np.array([10, 13, 12, 11])).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("rule", ["", "-", "=a", "x=", "x=a,,b"])
def test_rules_that_say_nothing(rule: str) -> None:
    with pytest.raises(InputError, match="priority must be COLUMN, -COLUMN or COLUMN=VALUE,VALUE"):
        parse_priority(rule)


def test_columns_that_do_not_compare() -> None:
    words = pa.record_batch({"x": ["2024-01-01", "yesterday"]})
    with pytest.raises(InputError, match=r"a\.parquet: the column 'x' .* must hold numbers or dates such as"):
        priority_keys(Priority("x"), words, "a.parquet")
    with pytest.raises(InputError, match=r"it holds list<"):
        priority_keys(Priority("x"), pa.record_batch({"x": [[1]]}), "a.parquet")
    with pytest.raises(InputError, match="must hold numbers or dates"):
        priority_keys(Priority("x"), pa.record_batch({"x": pa.array([2**64 - 1], pa.uint64())}), "a.parquet")
    with pytest.raises(InputError, match="b: the column 'x' holds dates, in a it holds integers; cast one"):
        check_kinds([Priority("x")], [["integer"], [None], ["date"]], ["a", "n", "b"])


def test_values_that_never_occur() -> None:
    rule = parse_priority("site=wiki,boks,web")
    batch = pa.record_batch({"site": ["web", "wiki", None, "books"]})
    keys, kind = priority_keys(rule, batch, "file")
    assert (values_of(rule, keys), kind) == (["wiki", "web"], "order")
    assert values_of(parse_priority("site"), keys) == []
    rules = [rule, Priority("date")]
    [warning] = check_values(rules, [["order", "date"]], [[["wiki", "web"], []]], has_columns=False)
    assert warning == "no document has 'boks' as 'site': check the values of --priority site=wiki,boks,web"
    seen = [[["wiki"], []], [["boks", "web"], []]]
    assert check_values(rules, [["order", None], [None, "date"]], seen, has_columns=False) == []
    [warning] = check_values(rules, [["order", None]] * 2, seen, has_columns=True)
    assert warning == "the column 'date' of --priority has no values, and decides nothing"
    with pytest.raises(InputError, match="no document has a field 'date', which --priority names"):
        check_values(rules, [["order", None]] * 2, seen, has_columns=False)


@pytest.mark.parametrize(
    ("rule", "values", "kept"),
    [
        ("source=wiki,books", ["web", "books", "wiki"], 2),
        ("date", [1700000000, 1800000000, 1600000000], 1),
        ("date", ["2024-01-01", "2023-01-01", "2025-01-01"], 2),
        ("-id", [7, 5, 6], 1),
        ("url=b,a", ["x", "a", "b"], 2),
        ("n", [1, 10**400, 3], 1),
    ],
)
def test_fields_of_json_lines_are_those_of_the_user(
    rule: str, values: list[Any], kept: int, tmp_path: Path
) -> None:
    """`source`, `id`, `url` and `date` have columns in the documents that lines become."""
    field = rule.lstrip("-").partition("=")[0]
    rows = [{"text": "one text of a few words", field: value} for value in values]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ExactDedupConfig(priority=(rule,))
    report = dedup_exact([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), config)
    assert report["warnings"] == []
    removed = pq.read_table(tmp_path / "out" / "removed").to_pylist()
    assert {row["kept_row"] for row in removed} == {kept}


def test_values_that_cannot_be_ordered(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "a"], "tags": [["x"], ["y"]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"'tags' decides .* must hold strings or numbers, it holds list"):
        dedup_exact(
            [str(tmp_path / "a.parquet")], str(tmp_path / "out"), ExactDedupConfig(priority=("tags=x,y",))
        )
