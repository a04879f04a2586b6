"""Rows as token ids: exact masks, cuts by rule, counts of what was set aside."""

from pathlib import Path

import pytest

from pylm.data.chat import ASSISTANT, END, END_OF_TEXT, PYLM, USER
from pylm.errors import InputError
from pylm.post.examples import fingerprint, read_conversations, read_pairs, read_prompts
from pylm.text import Tokenizer


def conversation(question: str, answer: str, kind: str = "toy") -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "kind": kind}


def test_a_conversation_trains_the_answer_and_its_end(write_rows, tokenizer: Tokenizer) -> None:
    path = write_rows("sft", [conversation("hi", "ho")])
    (example,), set_aside = read_conversations([path], tokenizer, PYLM, max_length=64)
    special = tokenizer.special_tokens
    assert example.ids.tolist() == [
        special[END_OF_TEXT],
        special[USER],
        *tokenizer.encode_ordinary("hi"),
        special[END],
        special[ASSISTANT],
        *tokenizer.encode_ordinary("ho"),
        special[END],
    ]
    assert example.mask.tolist() == [False] * 6 + [True] * 3
    assert (example.kind, set_aside) == ("toy", {})


def test_long_conversations_are_cut_and_those_without_answer_left_are_dropped(
    write_rows, tokenizer: Tokenizer
) -> None:
    rows = [conversation("q", "a"), conversation("q", "a" * 20), conversation("q" * 20, "a")]
    examples, set_aside = read_conversations([write_rows("sft", rows)], tokenizer, PYLM, max_length=10)
    assert [example.length for example in examples] == [7, 10]
    assert [example.num_trained for example in examples] == [2, 5]
    assert set_aside == {"truncated": 1, "dropped: no assistant token within max_length": 1}


def test_a_file_without_any_usable_row_is_an_error(write_rows, tokenizer: Tokenizer) -> None:
    path = write_rows("sft", [conversation("q" * 20, "a")])
    with pytest.raises(InputError, match="no row can be used \\(1 dropped: no assistant token"):
        read_conversations([path], tokenizer, PYLM, max_length=10)
    assert read_conversations([], tokenizer, PYLM, max_length=10) == ([], {})


def test_a_conversation_without_assistant_is_an_error(write_rows, tokenizer: Tokenizer) -> None:
    path = write_rows("sft", [{"messages": [{"role": "user", "content": "hi"}], "kind": "toy"}])
    with pytest.raises(InputError, match=r"sft\.jsonl:1: .*assistant"):
        read_conversations([path], tokenizer, PYLM, max_length=10)


def test_pairs_share_the_prompt_and_train_the_answers(write_rows, tokenizer: Tokenizer) -> None:
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "no", "kind": "tone"},
        {"prompt": "p", "chosen": "same", "rejected": "same", "kind": "tone"},
        {"prompt": "p", "chosen": "x" * 20, "rejected": "x" * 20 + "y", "kind": "tone"},
        {"prompt": "p" * 20, "chosen": "a", "rejected": "b", "kind": "tone"},
    ]
    (pair,), set_aside = read_pairs([write_rows("dpo", rows)], tokenizer, PYLM, max_length=12)
    chosen, rejected = pair.chosen, pair.rejected
    prompt = chosen.ids[~chosen.mask].tolist()
    assert prompt == rejected.ids[~rejected.mask].tolist()
    assert tokenizer.decode(chosen.ids[chosen.mask].tolist()) == "good" + END
    assert tokenizer.decode(rejected.ids[rejected.mask].tolist()) == "no" + END
    assert set_aside == {"dropped: both answers are the same": 2, "dropped: prompt fills max_length": 1}


def test_prompts_end_where_the_model_goes_on(write_rows, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    rows = [
        {"messages": messages, "ground_truth": "4", "dataset": "arithmetic/add"},
        {"messages": [{"role": "user", "content": "9" * 20}], "ground_truth": "4", "dataset": "arithmetic"},
    ]
    (prompt,), set_aside = read_prompts([write_rows("rl", rows)], tokenizer, PYLM, max_length=12)
    assert prompt.ids[-1] == tokenizer.special_tokens[ASSISTANT]
    assert (prompt.text, prompt.ground_truth, prompt.dataset) == ("2 + 2?", "4", "arithmetic/add")
    assert set_aside == {"dropped: prompt longer than max_length": 1}


def test_fingerprints_see_borders(tmp_path: Path) -> None:
    assert fingerprint([[1, 2], [3]]) == fingerprint([[1, 2], [3]])
    assert fingerprint([[1, 2], [3]]) != fingerprint([[1], [2, 3]])
