"""The guide's examples run; those that need a cluster are code."""

import doctest
import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_examples() -> None:
    result = doctest.testfile(str(GUIDE), module_relative=False, encoding="utf-8")
    assert result.attempted > 20
    assert result.failed == 0


def test_clusters() -> None:
    others = re.findall(r"```py\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(others) == 2
    for block in others:
        compile(block, str(GUIDE), "exec")
        for line in re.findall(r"^from pylm.*", block, re.MULTILINE):
            exec(line)
