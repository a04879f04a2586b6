"""Spoil a right reply in a way that has a name: the rejected half of a preference pair.

Every fault is one that the prompt shows to be wrong (another format than asked, text that has nothing
to do with the code, a reply that breaks off or does not stop), so that even a tiny model can learn to
rank it. A wrong number is no such fault: telling 35 from 36 takes the arithmetic itself.
"""

import random
from collections.abc import Sequence

from pylm.post.synthesis.questions import TASKS, Prompt, render

FAULTS = ("wrong_format", "other_answer", "truncated", "ramble", "echo")
_BORROWED = frozenset({"function_name", "arguments", "docstring", "module"})


def spoil(prompt: Prompt, fault: str, others: Sequence[str], rng: random.Random) -> str | None:
    """Make a faulty reply.

    Args:
        prompt: the prompt with its right answer.
        fault: one of `FAULTS`:
            wrong_format (the right answer in a format that was not asked),
            other_answer (the answer to the same question about other code, in the asked format),
            truncated (the reply breaks off within the answer),
            ramble (the reply goes on after the answer),
            echo (lines of the prompt instead of an answer).
        others: right answers to the same task on other code.
        rng: source of chance.

    Returns:
        The reply, never equal to the right one; None where the fault does not suit the prompt.
    """
    if fault == "wrong_format":
        return _reformat(prompt, rng)
    if fault == "other_answer":
        return _borrow(prompt, others, rng)
    if fault == "truncated":
        return _truncate(prompt, rng)
    if fault == "ramble":
        return _ramble(prompt, others, rng)
    assert fault == "echo", fault
    return _echo(prompt, rng)


def _reformat(prompt: Prompt, rng: random.Random) -> str | None:
    formats = TASKS[prompt.task].formats if prompt.task in TASKS else ("answer", "bracket", "json", "bullet")
    replies = [render(form, prompt.answer) for form in formats]
    replies.append(prompt.answer)
    replies.append(f"The answer is {prompt.answer}")
    if prompt.format == "line":
        replies += [render(form, prompt.answer) for form in ("answer", "bullet")]
    wrong = sorted({reply for reply in replies if reply != prompt.reply})
    return rng.choice(wrong)


def _borrow(prompt: Prompt, others: Sequence[str], rng: random.Random) -> str | None:
    if prompt.task not in _BORROWED:
        return None
    for _ in range(20):
        other = rng.choice(others)
        if other not in prompt.code and prompt.answer not in other:
            return render(prompt.format, other)
    return None


def _truncate(prompt: Prompt, rng: random.Random) -> str | None:
    reply = prompt.reply
    start = reply.index(prompt.answer) if prompt.answer in reply else 0
    if len(prompt.answer) < 8:
        return None
    return reply[: start + rng.randint(2, len(prompt.answer) * 2 // 3)].rstrip()


def _ramble(prompt: Prompt, others: Sequence[str], rng: random.Random) -> str:
    tails = [prompt.reply, f"{prompt.reply}\n{prompt.reply}"]
    if others:
        tails.append(render(prompt.format, rng.choice(others)))
    lines = prompt.code.splitlines()
    if lines:
        tails.append("\n".join(rng.sample(lines, k=min(2, len(lines)))))
    return f"{prompt.reply}\n{rng.choice(tails)}"


def _echo(prompt: Prompt, rng: random.Random) -> str | None:
    lines = [line.strip() for line in prompt.code.splitlines() if len(line.strip()) >= 4]
    lines = [line for line in lines if prompt.answer not in line]
    if not lines or prompt.format == "line":
        return None
    start = rng.randrange(len(lines))
    return "\n".join(lines[start : start + rng.randint(1, 2)])
