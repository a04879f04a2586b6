"""The guide's example runs, and its tables are those of the code."""

import gzip
import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pylm.data.filters import RULES
from pylm.data.funnel import STEPS
from pylm.data.pipeline import prepare
from pylm.data.readers import EXPECTED
from pylm.recipe import load_recipe

GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    words = [*["the", "and", "with"] * 30, *(f"word{i}" for i in range(300))]
    texts = [". ".join(" ".join(rng.choices(words, k=12)) for _ in range(12)) for _ in range(60)]
    Path("corpus/books").mkdir(parents=True)
    web = [json.dumps({"content": text, "id": i}) for i, text in enumerate([*texts[:40], texts[0], "short"])]
    Path("corpus/a.jsonl.gz").write_bytes(gzip.compress("\n".join(web).encode()))
    Path("corpus/books/b.txt").write_text("\n***\n".join(texts[40:]))
    found = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    Path("recipe.toml").write_text(found[1])
    recipe = load_recipe("recipe.toml")
    funnel = prepare(recipe.prepare, Path("out"), seed=recipe.seed, num_workers=1)
    assert [step.documents for step in funnel.steps[:4]] == [62, 61, 60, 60]
    kept = [pq.read_table(f"out/{name}.parquet")["text"].to_pylist() for name in ("train", "heldout")]
    assert sorted([*kept[0], *kept[1]]) == sorted(texts)
    assert kept[1]


def test_names_in_the_guide() -> None:
    for name in (*RULES, *STEPS, *EXPECTED):
        assert f"`{name}`" in GUIDE
