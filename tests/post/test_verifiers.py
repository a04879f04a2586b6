"""Verifiers against hand-made cases, against exact arithmetic, and against GSM8K's own labels."""

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylm.errors import InputError
from pylm.post.verifiers import GSM8K, VERIFIERS, Arithmetic, Verdict, find_verifier
from pylm.post.verifiers.numbers import parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", Fraction(7)),
        ("-7", Fraction(-7)),
        ("007", Fraction(7)),
        ("-0", Fraction(0)),
        ("1,234,567", Fraction(1234567)),
        ("0.1", Fraction(1, 10)),
        ("-2.50", Fraction(-5, 2)),
        ("3/4", Fraction(3, 4)),
        ("1.5/3", Fraction(1, 2)),
        ("1,23", None),
        ("12,345,6", None),
        ("1/0", None),
        ("1.", None),
        (".5", None),
        ("+1", None),
        ("1e3", None),
        ("٣", None),
        ("", None),
        ("9" * 101, None),
        ("__import__('os')", None),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@given(st.integers(-(10**30), 10**30), st.integers(0, 20))
def test_decimals_equal_the_decimal_module(unscaled: int, places: int) -> None:
    decimal = Decimal(unscaled).scaleb(-places, context=None)
    assert parse_number(f"{decimal:f}") == Fraction(decimal)


@given(st.text(alphabet="0123456789,./- ", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    value = parse_number(text)
    if value is not None:
        whole, _, divisor = text.replace(",", "").partition("/")
        assert value == Fraction(whole) / Fraction(divisor or "1")


@pytest.mark.parametrize(
    ("completion", "truth", "correct", "formatted"),
    [
        ("Answer: 12", "12", True, True),
        ("Answer: 13", "12", False, True),
        ("Answer: 1,000", "1000", True, True),
        ("Answer: 0.5", "1/2", True, True),
        ("Answer: -3", "-3", True, True),
        ("Answer: 3", "-3", False, True),
        ("Answer: 1/0", "0", False, True),
        ("12", "12", False, False),
        ("answer: 12", "12", False, False),
        ("Answer: 12.", "12", False, False),
        ("Answer: 12 ", "12", False, False),
        ("Answer: 12\n", "12", False, False),
        ("So: Answer: 12", "12", False, False),
        ("Answer: 1 + 11", "12", False, False),
        ("Answer: 12 Answer: 12", "12", False, False),
        ("", "12", False, False),
    ],
)
def test_strict_arithmetic(completion: str, truth: str, correct: bool, formatted: bool) -> None:
    verdict = Arithmetic(strict=True).verify(completion, truth, finished=True)
    assert (verdict.correct, verdict.formatted) == (correct, formatted)


def test_strict_arithmetic_gives_nothing_for_a_cut_off_answer() -> None:
    verdict = Arithmetic().verify("Answer: 12", "12", finished=False)
    assert verdict == Verdict(correct=False, formatted=False, answer=None)


@pytest.mark.parametrize(
    ("completion", "truth", "answer"),
    [
        ("3 + 4 = 7\nAnswer: 7", "7", "7"),
        ("Answer: 3\nNo, wait.\nAnswer: 7.", "7", "7"),
        ("Answer:7", "7", "7"),
        ("The Answer: 7, surely", "7", "7"),
        ("Answer: 7a", "7", None),
        ("Answer: 7.1.2", "7", None),
        ("Answer:\n7", "7", None),
        ("Answer: seven", "7", None),
    ],
)
def test_free_arithmetic_takes_the_last_answer(completion: str, truth: str, answer: str | None) -> None:
    verdict = Arithmetic(strict=False).verify(completion, truth, finished=False)
    assert verdict == Verdict(correct=answer is not None, formatted=answer is not None, answer=answer)


def test_a_bad_ground_truth_is_the_rows_fault() -> None:
    with pytest.raises(InputError, match="ground_truth must be an integer"):
        Arithmetic().verify("Answer: 1", "one", finished=True)
    with pytest.raises(InputError, match="ground_truth must be a number"):
        GSM8K().verify("#### 1", "one", finished=True)


def test_threads_agree_with_one_thread() -> None:
    jobs = [(f"Answer: {i % 7}", str(i % 5)) for i in range(2000)]

    def correct(job: tuple[str, str]) -> bool:
        return Arithmetic().verify(*job, finished=True).correct

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(correct, jobs)) == [i % 7 == i % 5 for i in range(2000)]


@pytest.mark.parametrize(
    "completion", ["Answer: " + "9" * 10**6, "Answer:" * 10**5, "Answer: " + "1," * 10**5]
)
@pytest.mark.parametrize("name", list(VERIFIERS))
def test_hostile_completions_are_wrong_not_slow(name: str, completion: str) -> None:
    assert not VERIFIERS[name].verify(completion, "1", finished=True).correct


def test_gsm8k_reads_its_own_reference_solutions(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        solution = json.loads(line)["answer"]
        assert GSM8K().verify(solution, solution, finished=True).correct


def test_gsm8k_agrees_with_the_authors_labels(shared_data: Path) -> None:
    # These samples mark the answer with "A:" where the data set itself has "####".
    path = shared_data / "gsm8k" / "example_model_solutions.jsonl"
    num_labels = num_disagreements = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        truth = row["ground_truth"].rsplit("A:", 1)[1].strip()
        for sample in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            completion = "####".join(row[sample]["solution"].rsplit("A:", 1))
            verdict = GSM8K().verify(completion, truth, finished=True)
            num_labels += 1
            num_disagreements += verdict.correct != row[sample]["is_correct"]
    assert num_labels == 4 * 1319
    assert num_disagreements == 0


def test_gsm8k_flexible_falls_back_to_the_last_number() -> None:
    text = "She has 3 apples and buys 4, so 7."
    assert GSM8K(strict=False).verify(text, "7", finished=True) == Verdict(True, False, "7")
    assert GSM8K(strict=True).verify(text, "7", finished=True) == Verdict(False, False, None)


def test_the_dataset_picks_the_verifier() -> None:
    assert find_verifier("arithmetic") is VERIFIERS["arithmetic"]
    assert find_verifier("arithmetic/addition") is VERIFIERS["arithmetic"]
    assert find_verifier("sums", assigned={"sums": "arithmetic-free"}) is VERIFIERS["arithmetic-free"]
    with pytest.raises(InputError, match="no verifier for dataset 'sums'"):
        find_verifier("sums")
