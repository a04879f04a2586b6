"""One stage's figures: what is written agrees with the parts measured alone."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pylm.data.chat import PYLM, read_chat_rows
from pylm.errors import InputError
from pylm.eval import evaluate as module
from pylm.eval.bits_per_byte import bits_per_byte
from pylm.eval.compare import wilson_interval
from pylm.eval.compression import compress
from pylm.eval.evaluate import EvalConfig, evaluate
from pylm.eval.tasks import run_task

TEXTS = ["def f(x):\n    return x\n" * 9, "", "import os\n" * 20, "class Zürich:\n    pass\n" * 4]
CONFIG = EvalConfig(
    seq_len=32,
    stride=24,
    max_bytes_pretrain=None,
    max_bytes=150,
    max_sft_rows=5,
    max_sft_tokens=4,
    max_verifiable_rows=4,
    max_verifiable_tokens=3,
    max_preference_rows=3,
    num_samples=3,
    texts=("def f(", "import "),
    text_tokens=5,
)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model, tokenizer) -> Path:
    monkeypatch.setattr(module, "load_model", lambda folder: (model, tokenizer))
    table = pa.table({"id": [f"doc{i}" for i in range(len(TEXTS))], "text": TEXTS})
    pq.write_table(table, tmp_path / "heldout.parquet")
    kinds = ["function_name/json", "chat", "is_method/upper"]
    write_rows(
        tmp_path / "rows/sft.heldout.jsonl",
        [{"messages": [user(f"q{i}"), assistant("YES")], "kind": kinds[i % 3]} for i in range(8)],
    )
    write_rows(
        tmp_path / "rows/verifiable.heldout.jsonl",
        [
            {"messages": [user(f"{i} + 1 = ?")], "ground_truth": str(i + 1), "dataset": "arithmetic/add"}
            for i in range(6)
        ],
    )
    write_rows(
        tmp_path / "rows/preference.heldout.jsonl",
        [
            {
                "prompt": [user(f"q{i}")],
                "chosen": [assistant("a")],
                "rejected": [assistant("long" * i)],
                "kind": "ramble/x",
            }
            for i in range(1, 6)
        ],
    )
    return tmp_path


def run(folder: Path, config: EvalConfig = CONFIG, *, stage: str = "sft", name: str = "out.json") -> dict:
    returned = evaluate(
        config,
        model_dir=folder / "model",
        heldout_documents=folder / "heldout.parquet",
        rows=folder / "rows",
        out_json=folder / name,
        stage=stage,
        seed=3,
    )
    written = json.loads((folder / name).read_text())
    for key, value in returned.items():
        assert written[key]["value"] == value
    return written


def test_text_figures_are_those_of_the_parts(folder: Path, model, tokenizer) -> None:
    written = run(folder, stage="pretrain")
    bits = written["bits_per_byte"]
    texts = [text for text in TEXTS if text]
    measured = bits_per_byte(model, tokenizer, texts, seq_len=32, stride=24)
    assert bits["value"] == pytest.approx(measured.value)
    assert bits["low"] <= bits["value"] <= bits["high"]
    assert [document["id"] for document in bits["documents"]] == ["doc0", "doc2", "doc3"]
    assert [document["bits"] for document in bits["documents"]] == pytest.approx(measured.bits)
    assert bits["num_bytes"] == bits["of_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert (bits["num_documents"], bits["of_documents"]) == (3, 4)
    assert written["compression"] == compress(texts).to_json()
    assert written["model"]["num_params"] == sum(p.numel() for p in model.parameters())


def test_later_stages_see_a_stated_sample(folder: Path) -> None:
    bits = run(folder)["bits_per_byte"]
    assert bits["num_bytes"] <= 150 < bits["of_bytes"]
    assert bits["num_bytes"] == sum(document["num_bytes"] for document in bits["documents"])


def test_shares_are_counted_with_intervals_parts_and_outcomes(folder: Path, model, tokenizer) -> None:
    written = run(folder)
    items = run_task(
        model, tokenizer, read_chat_rows([folder / "rows/sft.heldout.jsonl"])[:5], PYLM, max_new_tokens=4
    )
    exact = written["exact_match"]
    assert exact["outcomes"] == "".join("01"[item.correct] for item in items)
    assert exact["num_total"] == 5
    assert written["format"]["num_total"] == sum(item.formatted is not None for item in items) == 3
    assert set(exact["by_task"]) == {"function_name", "chat", "is_method"}
    assert set(written["format"]["by_format"]) == {"json", "upper"}
    for part in (exact, written["format"], written["arithmetic"], written["preference"]):
        assert part["value"] == part["num_correct"] / part["num_total"]
        assert part["num_correct"] == part["outcomes"].count("1")
        assert (part["low"], part["high"]) == wilson_interval(part["num_correct"], part["num_total"])
    assert written["arithmetic"]["num_total"] == 4
    assert written["arithmetic"]["by_family"]["add"]["num_total"] == 4
    assert written["preference"]["num_total"] == 3
    assert written["preference"]["by_fault"]["ramble"]["num_total"] == 3


def test_samples_are_the_same_prompts_for_every_stage(folder: Path) -> None:
    first, second = run(folder, stage="sft"), run(folder, stage="dpo", name="other.json")
    prompts = [sample["prompt"] for sample in first["samples"]]
    assert prompts == ["def f(", "import ", "0 + 1 = ?", "q0", "q1"]
    assert first["samples"] == second["samples"]
    for written in (first, second):
        del written["elapsed_s"], written["stage"]
    assert first == second


def test_rows_that_are_not_there_are_not_asked(folder: Path) -> None:
    for path in (folder / "rows").iterdir():
        path.unlink()
    written = run(folder)
    assert not {"format", "exact_match", "arithmetic", "preference"} & written.keys()
    assert [sample["kind"] for sample in written["samples"]] == ["text", "text"]


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"eval.seq_len must be in \[stride=24, 512\]"):
        run(folder, CONFIG.model_copy(update={"seq_len": 1024}))
    with pytest.raises(InputError, match=r"eval.seq_len must be in"):
        run(folder, CONFIG.model_copy(update={"seq_len": 16}))
    with pytest.raises(InputError, match="no chat template 'x'"):
        run(folder, CONFIG.model_copy(update={"template": "x"}))
    pq.write_table(pa.table({"id": ["a"], "text": [""]}), folder / "heldout.parquet")
    with pytest.raises(InputError, match=r"heldout\.parquet: no held-out document with text \(of 1\)"):
        run(folder)
    (folder / "heldout.parquet").write_text("x")
    with pytest.raises(InputError, match=r"heldout\.parquet: cannot read the columns"):
        run(folder)
