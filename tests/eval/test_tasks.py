"""Questions asked of a tiny model, judged; the model is taught to answer so that both outcomes occur."""

import json
import random
from pathlib import Path

import pytest
import torch

from pylm.data.chat import PYLM, ChatRow, PreferenceRow, VerifiableRow, encode_preference
from pylm.errors import InputError
from pylm.eval import tasks
from pylm.eval.preferences import prefers_chosen
from pylm.eval.tasks import Reply, answer, first_of_each, run_task, run_verifiable
from pylm.model.generate import Generations
from pylm.model.transformer import Transformer


def chat(kind: str, prompt: str, reply: str) -> ChatRow:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": reply})
    return ChatRow(messages=messages, kind=kind)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tokenizer):
    """Replace generation by a table from the user's message to (reply, finished)."""

    def install(table: dict[str, tuple[str, bool]]) -> list[int]:
        sizes: list[int] = []

        def fake(model, prompts, *, max_new_tokens, temperature, stop_ids) -> Generations:
            assert temperature == 0.0
            sizes.append(len(prompts))
            ids, finished = [], []
            for prompt in prompts:
                text = tokenizer.decode(prompt)
                asked = text.removeprefix("<|endoftext|><|user|>").removesuffix("<|end|><|assistant|>")
                reply, ends = table[asked]
                end = [tokenizer.special_tokens["<|end|>"]] if ends else []
                ids.append([*tokenizer.encode_ordinary(reply), *end])
                finished.append(ends)
            return Generations(ids, [[0.0] * len(row) for row in ids], finished)

        monkeypatch.setattr(tasks, "generate", fake)
        return sizes

    return install


def test_answers_come_back_in_order_whatever_the_batches(model, tokenizer) -> None:
    prompts = [[{"role": "user", "content": "x" * n}] for n in (5, 1, 9, 3, 7)]
    alone = [answer(model, tokenizer, [prompt], PYLM, max_new_tokens=6)[0] for prompt in prompts]
    for batch_size in (1, 2, 64):
        assert answer(model, tokenizer, prompts, PYLM, max_new_tokens=6, batch_size=batch_size) == alone
    assert answer(model, tokenizer, [], PYLM, max_new_tokens=6) == []


def test_the_end_is_not_part_of_the_reply(model, tokenizer, scripted) -> None:
    scripted({"a": ("done", True), "b": ("cut", False)})
    replies = answer(
        model, tokenizer, [[{"role": "user", "content": name}] for name in "ab"], PYLM, max_new_tokens=9
    )
    assert replies == [Reply("done", True), Reply("cut", False)]


def test_rows_are_judged_by_format_and_by_answer(model, tokenizer, scripted) -> None:
    cases = [
        ("function_name/answer", "Answer: run", ("Answer: run", True), True, True),
        ("function_name/answer", "Answer: run", ("Answer: walk", True), True, False),
        ("function_name/answer", "Answer: run", ("[run]", True), False, False),
        ("function_name/answer", "Answer: run", ("Answer: run", False), False, False),
        ("function_name/json", '{"answer": "run"}', ('{ "answer": "run" }', True), True, True),
        ("is_method/upper", "YES", ("NO", True), True, False),
        ("chat", "Hello!", ("Hello!", True), None, True),
        ("chat", "Hello!", ("Hello", True), None, False),
        ("chat", "Hello!", ("Hello!", False), None, False),
    ]
    rows = [chat(kind, f"question {i}", expected) for i, (kind, expected, *_) in enumerate(cases)]
    sizes = scripted({f"question {i}": reply for i, (_, _, reply, _, _) in enumerate(cases)})
    items = run_task(model, tokenizer, rows, PYLM, max_new_tokens=9, batch_size=4)
    assert [(item.formatted, item.correct) for item in items] == [case[3:] for case in cases]
    assert [item.prompt for item in items] == [f"question {i}" for i in range(len(cases))]
    assert [item.expected for item in items] == [case[1] for case in cases]
    assert sizes == [4, 4, 1]


def test_problems_are_judged_by_their_verifier(model, tokenizer, scripted) -> None:
    rows = [VerifiableRow(({"role": "user", "content": f"q{i}"},), "35", "arithmetic/add") for i in range(4)]
    scripted(
        {
            "q0": ("Answer: 35", True),
            "q1": ("Answer: 36", True),
            "q2": ("35", True),
            "q3": ("Answer: 35", False),
        }
    )
    items = run_verifiable(model, tokenizer, rows, PYLM, max_new_tokens=9)
    assert [item.correct for item in items] == [True, False, False, False]
    assert [item.formatted for item in items] == [True, True, False, False]
    assert {item.kind for item in items} == {"arithmetic/add"}
    with pytest.raises(InputError, match="no verifier for dataset 'chess'"):
        run_verifiable(
            model, tokenizer, [VerifiableRow(rows[0].messages, "1", "chess")], PYLM, max_new_tokens=9
        )


def test_a_conversation_without_an_answer_is_refused(model, tokenizer) -> None:
    row = ChatRow(({"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}), "chat")
    with pytest.raises(InputError, match="must end with the assistant's message"):
        run_task(model, tokenizer, [row], PYLM, max_new_tokens=3)


def test_the_first_item_of_each_task_is_shown(model, tokenizer, scripted) -> None:
    kinds = ["a/json", "a/answer", "b/json", "a/json", "c/x"]
    scripted({f"{i}": ("", True) for i in range(5)})
    items = run_task(
        model, tokenizer, [chat(k, f"{i}", "x") for i, k in enumerate(kinds)], PYLM, max_new_tokens=3
    )
    assert [item.prompt for item in first_of_each(items, max_items=9)] == ["0", "2", "4"]
    assert [item.prompt for item in first_of_each(items, max_items=2)] == ["0", "2"]
    assert [item.prompt for item in first_of_each(items, max_items=9, by_format=True)] == ["0", "1", "2", "4"]


def test_preferences_equal_one_pass_an_answer(model: Transformer, tokenizer) -> None:
    rng = random.Random(0)
    rows = [
        PreferenceRow(
            ({"role": "user", "content": "q" * (i % 5 + 1)},),
            rng.randbytes(i).hex(),
            rng.randbytes(i).hex(),
            "k",
        )
        for i in range(1, 12)
    ]
    expected = []
    for row in rows:
        prompt, *answers = encode_preference(row, tokenizer)
        logprobs = []
        for reply in answers:
            ids = torch.tensor([[*prompt, *reply]])
            with torch.no_grad():
                logits = model(ids[:, :-1])[0].double() @ model.output_weight.double().T
            table = torch.log_softmax(logits, dim=-1)
            places = range(len(prompt) - 1, ids.shape[1] - 1)
            logprobs.append(sum(table[place, ids[0, place + 1]].item() for place in places))
        expected.append(logprobs[0] > logprobs[1])
    assert set(expected) == {True, False}
    for batch_size in (1, 3, 64):
        assert prefers_chosen(model, tokenizer, rows, PYLM, batch_size=batch_size) == expected
    assert prefers_chosen(model, tokenizer, [], PYLM) == []


def test_equal_answers_are_no_preference_and_long_ones_are_refused(model, tokenizer) -> None:
    row = PreferenceRow(({"role": "user", "content": "q"},), "same", "same", "k")
    assert prefers_chosen(model, tokenizer, [row], PYLM) == [False]
    long = PreferenceRow(row.prompt, "x" * 600, "y", "k")
    with pytest.raises(InputError, match=r"pair 0 of kind 'k' has .* max_seq_len=512"):
        prefers_chosen(model, tokenizer, [long], PYLM)


def test_every_synthesized_answer_passes_its_own_check(tmp_path: Path) -> None:
    """What the rows call right is right: each reference is well-formed and gives its own answer."""
    import ast

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pylm.eval.formats import is_known, read_answer
    from pylm.post.synthesize import SynthesizeConfig, synthesize

    library = Path(ast.__file__).parent
    for name, modules in (("train", ["calendar", "textwrap"]), ("heldout", ["shutil"])):
        texts = [(library / f"{module}.py").read_text(encoding="utf-8") for module in modules]
        pq.write_table(pa.table({"id": modules, "text": texts}), tmp_path / f"{name}.parquet")
    config = SynthesizeConfig(
        sft_train=250,
        sft_heldout=60,
        preference_train=100,
        preference_heldout=20,
        verifiable_train=50,
        verifiable_heldout=10,
    )
    synthesize(
        config,
        documents=tmp_path / "train.parquet",
        heldout_documents=tmp_path / "heldout.parquet",
        out=tmp_path / "rows",
        seed=1,
    )
    kinds = set()
    for line in (tmp_path / "rows/sft.train.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert is_known(row["kind"])
        assert read_answer(row["kind"], row["messages"][1]["content"]) is not None, row
        kinds.add(row["kind"])
    assert len(kinds) > 25
