"""The report: complete and broken runs, hostile text, well-formed markup, figures that are the files'."""

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from pylm.errors import InputError
from pylm.eval.compare import paired_difference, wilson_interval
from pylm.report import print_summary, write_report
from pylm.report.charts import nice_ticks, running_mean, thin_out
from pylm.report.html import (
    Html,
    element,
    escape,
    format_bytes,
    format_count,
    format_duration,
    format_number,
)

STAGES = ("pretrain", "sft", "dpo", "rlvr")
RATES = {
    "pretrain": (0.0, 0.0, 0.002),
    "sft": (0.972, 0.61, 0.27),
    "dpo": (0.981, 0.63, 0.268),
    "rlvr": (0.978, 0.62, 0.655),
}
TASKS = ("arguments", "docstring", "function_name", "has_docstring", "is_method", "module", "num_arguments")


FUNNEL = {
    "steps": [
        {"name": "read", "documents": 5206, "bytes": 71_400_000},
        {"name": "filter", "documents": 4313, "bytes": 60_000_000},
        {"name": "exact duplicates", "documents": 3902, "bytes": 50_100_000},
        {"name": "near duplicates", "documents": 3417, "bytes": 44_500_000},
        {"name": "held out", "documents": 3391, "bytes": 44_000_000},
    ],
    "drops": [
        {"step": "read", "reason": "not_utf8", "source": "code", "documents": 8, "bytes": 400_000},
        {"step": "filter", "reason": "too short", "source": "code", "documents": 511, "bytes": 1_000},
        {"step": "filter", "reason": "too short", "source": "docs", "documents": 100, "bytes": 1_000},
        {"step": "filter", "reason": "symbols", "source": "code", "documents": 274, "bytes": 1_000},
    ],
}


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_value(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def share(outcomes: str) -> dict:
    num_correct = outcomes.count("1")
    low, high = wilson_interval(num_correct, len(outcomes))
    return {
        "value": num_correct / len(outcomes),
        "low": low,
        "high": high,
        "num_correct": num_correct,
        "num_total": len(outcomes),
        "outcomes": outcomes,
    }


def make_run(folder: Path, *, seed: int = 1) -> Path:
    """Write the folder of a run that went as such runs go."""
    rng = random.Random(seed)
    num_steps = 1400
    records = []
    for step in range(num_steps):
        loss = 1.42 + 6.9 * math.exp(-step / 60) + 1.1 * math.exp(-step / 500) + rng.gauss(0, 0.045)
        is_spike = step in (388, 913, 914)
        warm, decay = min(1.0, (step + 1) / 60), 0.5 * (1 + math.cos(math.pi * step / num_steps))
        records.append(
            {
                "step": step,
                "loss": loss + (0.9 if is_spike else 0.0) - (0.06 if step > 1150 else 0.0),
                "grad_norm": rng.uniform(0.3, 0.6),
                "learning_rate": 3e-3 * warm * (0.1 + 0.9 * decay),
                "tokens": (step + 1) * 8192,
                "spike": is_spike,
                "stage": int(step > 1150),
                "elapsed_s": step * 0.26,
            }
        )
    write_lines(folder / "pretrain/metrics.jsonl", records)
    write_lines(
        folder / "sft/metrics.jsonl",
        [
            {
                "step": step,
                "loss": 0.16 + 2.4 * math.exp(-step / 30) + rng.gauss(0, 0.03),
                "learning_rate": 1e-3,
            }
            for step in range(375)
        ],
    )
    dpo = []
    for step in range(125):
        gain = 1 - math.exp(-step / 35)
        chosen, rejected = 0.5 * gain + rng.gauss(0, 0.08), -2.6 * gain + rng.gauss(0, 0.2)
        dpo.append(
            {
                "step": step,
                "loss": 0.69 * math.exp(-step / 40) + 0.2,
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": min(1.0, 0.5 + 0.43 * gain + rng.gauss(0, 0.04)),
                **({"heldout/rewards/accuracies": 0.5 + 0.41 * gain} if step % 25 == 24 or step == 0 else {}),
            }
        )
    write_lines(folder / "dpo/metrics.jsonl", dpo)
    rlvr = []
    for step in range(150):
        accuracy = 0.27 + 0.39 * (1 - math.exp(-step / 60))
        low, high = wilson_interval(round(accuracy * 500), 500)
        rlvr.append(
            {
                "step": step,
                "reward": accuracy + rng.gauss(0, 0.04),
                "reward_std": 0.3,
                "kl": 0.04 * (1 - math.exp(-step / 50)) + abs(rng.gauss(0, 0.002)),
                "entropy": 0.9 * math.exp(-step / 90) + rng.gauss(0, 0.02),
                **(
                    {"heldout/accuracy": accuracy, "heldout/low": low, "heldout/high": high}
                    if step % 25 == 24 or step == 0
                    else {}
                ),
            }
        )
    write_lines(folder / "rlvr/metrics.jsonl", rlvr)
    luck = [rng.random() for _ in range(1000)]
    documents = [(f"stdlib/{i}.py", rng.randint(3_000, 40_000), rng.gauss(1.55, 0.18)) for i in range(29)]
    for number, stage in enumerate(STAGES):
        form, exact, arithmetic = RATES[stage]
        drift = (0.0, 0.09, 0.095, 0.11)[number]
        sizes = [size for _, size, _ in documents]
        bits = [size * (bpb + drift * rng.uniform(0.8, 1.2)) for _, size, bpb in documents]
        formats = "".join("01"[luck[i] < form] for i in range(400))
        exacts = "".join("01"[luck[i] < exact] for i in range(400))
        problems = "".join("01"[value < arithmetic] for value in luck)
        pairs = "".join("01"[value < 0.6 + 0.09 * number] for value in luck[:250])
        value = sum(bits) / sum(sizes)
        replies = {
            "pretrain": ["\n\n    def __init__(self, *args, **kwargs):\n        self", "\n    def test_", ""],
            "sft": ["Answer: 34", '{"answer": "read_header"}', "Answer: self, size"],
            "dpo": ["Answer: 34", '{"answer": "read_header"}', "Answer: self, size"],
            "rlvr": ["Answer: 35", '{"answer": "read_header"}', "Answer: self, size"],
        }[stage]
        name_it = 'What is the name of this function? Reply as JSON: {"answer": X}.'
        code = "def read_header(self, size):\n    data = self.file.read(size)\n    return data"
        expected = ["Answer: 35", '{"answer": "read_header"}', "Answer: self, size"]
        write_value(
            folder / f"eval/{stage}.json",
            {
                "stage": stage,
                "model": {"num_params": 2_104_320},
                "bits_per_byte": {
                    "value": value,
                    "low": value - 0.06,
                    "high": value + 0.06,
                    "num_documents": 29,
                    "num_bytes": sum(sizes),
                    "of_documents": 29,
                    "of_bytes": sum(sizes) if stage == "pretrain" else 2 * sum(sizes),
                    "seq_len": 256,
                    "documents": [
                        {"id": name, "bits": b, "num_bytes": size}
                        for (name, size, _), b in zip(documents, bits, strict=True)
                    ],
                },
                "compression": {"xz": 1.93, "zstd": 2.21, "gzip": 2.38, "num_bytes": sum(sizes)},
                "format": {
                    **share(formats),
                    "by_task": {task: share(formats[k::7]) for k, task in enumerate(TASKS)},
                },
                "exact_match": {
                    **share(exacts),
                    "by_task": {task: share(exacts[k::7]) for k, task in enumerate(TASKS)},
                },
                "arithmetic": share(problems),
                "preference": share(pairs),
                "samples": [
                    {
                        "kind": "text",
                        "prompt": "def fibonacci(n):\n",
                        "completion": "    if n is None:\n        return None\n    return n.get(n, 0)\n",
                        "finished": False,
                    },
                    *(
                        {
                            "kind": "chat",
                            "prompt": prompt,
                            "expected": right,
                            "completion": reply,
                            "finished": stage != "pretrain",
                            "formatted": stage != "pretrain",
                            "correct": reply == right,
                        }
                        for prompt, right, reply in zip(
                            (
                                "What is 27 + 8?",
                                f"{name_it}\n\n{code}",
                                f"List the arguments of this function. Start with Answer:.\n\n{code}",
                            ),
                            expected,
                            replies,
                            strict=True,
                        )
                    ),
                ],
            },
        )
    write_value(folder / "prepare/funnel.json", FUNNEL)
    times = {
        "prepare": 21.3,
        "tokenizer": 4.2,
        "tokens": 3.1,
        "rows": 8.0,
        "pretrain": 364.0,
        "sft": 121.5,
        "dpo": 74.2,
        "rlvr": 139.9,
        "eval": 48.3,
    }
    for name, seconds in times.items():
        write_value(
            folder / name / "stage.json",
            {
                "status": "complete",
                "stage": name,
                "fingerprint": f"{rng.getrandbits(128):032x}",
                "elapsed_s": seconds,
                "versions": {
                    "pylm": "0.1.0",
                    "python": "3.11.7",
                    "torch": "2.13.0+cpu",
                    "platform": "Linux-6.1-x86_64",
                    "device": "cpu",
                    "threads": "2",
                },
                "summary": {"num_documents": 3391, "share": 0.6514, "by_kind": {"docstring/json": 0.31}},
            },
        )
    write_value(folder / "recipe.json", {"name": "quickstart", "seed": 1, "pretrain": {"num_steps": 1400}})
    return folder


class Checker(HTMLParser):
    """Fails on tags that are not closed in order; keeps text, attributes and element counts."""

    VOID = frozenset({"br", "hr", "link", "meta"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute given twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    checker = check(page)
    for tag, attributes in checker.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for value in (attributes.get("href"), attributes.get("src")):
            assert value is None or value.startswith("#")
    assert "url(" not in page
    assert "http" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_page_can_be_read_without_seeing_it(page: str) -> None:
    checker = check(page)
    for tag, attributes in checker.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 20
    anchors = {value for _, attributes in checker.tags if (value := attributes.get("id"))}
    links = {attributes["href"][1:] for tag, attributes in checker.tags if tag == "a"}
    assert links == {anchor for anchor in anchors if not anchor.endswith("-title")}
    assert [tag for tag, _ in checker.tags if tag == "h1"] == ["h1"]
    assert ("html", {"lang": "en"}) in checker.tags


def test_figures_are_those_of_the_files(run: Path, page: str) -> None:
    text = " ".join(check(page).text)
    values = {stage: json.loads((run / f"eval/{stage}.json").read_text()) for stage in STAGES}
    for value in values.values():
        for part in (value["format"], value["exact_match"], value["arithmetic"], value["preference"]):
            assert f"{100 * part['value']:.1f}\u202f%" in text
            assert f"[{100 * part['low']:.1f}, {100 * part['high']:.1f}]" in text
        assert f"{value['bits_per_byte']['value']:.3f}" in text
    outcomes = [
        [character == "1" for character in values[stage]["arithmetic"]["outcomes"]]
        for stage in ("sft", "rlvr")
    ]
    change = paired_difference(*outcomes)
    assert f"{100 * change.value:+.1f} points" in text
    assert f"[{100 * change.low:.1f}, {100 * change.high:.1f}]" in text
    assert "3,391 of 5,206 documents" in text
    assert "13\u202fmin 05\u202fs" in text or "13\u202fmin 04\u202fs" in text
    assert "3 steps were spikes." in text
    assert "curriculum stage 2" in text
    share = 1 - values["pretrain"]["bits_per_byte"]["value"] / 1.93
    assert f"{100 * share:.1f}\u202f% less than xz" in text


def test_drops_are_shown_by_step_and_reason(page: str) -> None:
    text = " ".join("".join(check(page).text).split())
    # Both sources together; rows that could not be read with the step after.
    assert "too short 611, symbols 274, not_utf8 8" in text
    assert "filter dropped most, 893." in text


def test_samples_of_all_stages_stand_side_by_side(page: str) -> None:
    text = " ".join(check(page).text)
    assert text.count("What is 27 + 8?") == 1
    assert text.count("Answer: 34") == 2
    assert text.count("(nothing)") == 1
    assert "def fibonacci(n):" in text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / '"><script>alert(1)</script>'.replace("/", "_"))
    attack = (
        '</pre></td><script>alert("x")</script><img src=x onerror=alert(1)>&lt;\x00\x1b[31m\u202eevil\ud800'
    )
    path = folder / "eval/sft.json"
    value = json.loads(path.read_text())
    for sample in value["samples"]:
        sample["completion"] = sample["expected"] = attack
    value["samples"][0]["prompt"] = attack
    value["exact_match"]["by_task"][attack] = value["exact_match"]["by_task"]["module"]
    write_value(path, value)
    steps = [{"name": attack, "documents": 2 - i} for i in range(2)]
    drop = {"step": attack, "reason": attack, "source": attack, "documents": 1}
    write_value(folder / "prepare/funnel.json", {"steps": steps, "drops": [drop]})
    write_value(folder / "sft/stage.json", {"elapsed_s": 1.0, "summary": {attack: attack, "list": [attack]}})
    write_value(folder / "versions.json", {attack: attack})
    (folder / "recipe.toml").write_text("x = '</details><script>alert(1)</script>'")
    page = write_report(folder).read_text(encoding="utf-8")
    checker = check(page)
    assert not {tag for tag, _ in checker.tags} & {"script", "img"}
    text = "".join(checker.text)
    assert 'alert("x")' in text
    assert "\u27e8U+202E\u27e9evil\u27e8U+D800\u27e9" in text
    assert "\u27e8U+0000\u27e9\u27e8U+001B\u27e9[31m" in text
    assert not any(character in page for character in "\x00\x1b\u202e")


def test_leading_line_breaks_of_an_answer_are_kept(page: str) -> None:
    assert "<pre>\n\n\n    def __init__" in page  # browsers drop the first


@pytest.mark.parametrize(
    "removed",
    [
        ["prepare"],
        ["eval"],
        ["dpo", "rlvr", "eval/dpo.json", "eval/rlvr.json"],
        ["pretrain", "eval/pretrain.json"],
        ["recipe.json"],
    ],
)
def test_what_is_missing_is_named_and_the_rest_is_shown(tmp_path: Path, removed: list[str]) -> None:
    folder = make_run(tmp_path / "run")
    for name in removed:
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
    page = write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    text = "".join(check(page).text)
    wanted = ["prepare/funnel.json", *(f"{stage}/metrics.jsonl" for stage in STAGES)]
    wanted += [f"eval/{stage}.json" for stage in STAGES]
    gone = [name for name in wanted if not (folder / name).exists()]
    assert ("not complete" in text) == bool(gone)
    for name in gone:
        assert name in text
    assert "Samples" in text or "eval" in removed


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page = write_report(tmp_path / "empty", tmp_path / "page.html").read_text(encoding="utf-8")
    checker = check(page)
    assert "not complete" in "".join(checker.text)
    assert not [tag for tag, _ in checker.tags if tag == "section"]


def test_a_run_of_one_step_can_be_shown(tmp_path: Path) -> None:
    for stage in STAGES:
        write_lines(tmp_path / "run" / stage / "metrics.jsonl", [{"step": 0, "loss": 2.0, "reward": 0.0}])
    check(write_report(tmp_path / "run").read_text(encoding="utf-8"))


def test_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    records = [
        {"step": i, "loss": None if i % 3 == 0 else 2.0 - i / 100, "learning_rate": None} for i in range(50)
    ]
    write_lines(tmp_path / "run/pretrain/metrics.jsonl", records)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    check(page)
    assert "nan" not in page.lower().replace("finance", "")


def test_other_shapes_of_the_files_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_value(
        folder / "eval/sft.json", {"format": [], "samples": {"a": 1}, "bits_per_byte": 3, "compression": None}
    )
    steps = [{"name": 1}, "x", {"documents": True}]
    write_value(folder / "prepare/funnel.json", {"steps": steps, "drops": [1]})
    write_value(folder / "sft/stage.json", {"elapsed_s": "soon", "summary": [1, 2]})
    check(write_report(folder).read_text(encoding="utf-8"))


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: expected the folder of a run"):
        write_report(tmp_path / "nowhere")
    folder = tmp_path / "run"
    write_value(folder / "eval/sft.json", [1])
    with pytest.raises(InputError, match=r"sft\.json: expected a JSON object, got list"):
        write_report(folder)
    (folder / "eval/sft.json").write_text("{")
    with pytest.raises(InputError, match=r"sft\.json: expected JSON"):
        write_report(folder)


def test_the_same_folder_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    pages = [write_report(run, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours `#rrggbb` (WCAG 2.1, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_enough_contrast_in_both_modes() -> None:
    style = files("pylm.report").joinpath("style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "tone-1", "tone-2", "tone-3", "tone-4", "up", "down", "alert"):
            for ground in ("page", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.37, 3.9, [1.5, 2.0, 2.5, 3.0, 3.5]),
        (-2.6, 3.0, [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]),
        (0, 1399, [0, 500, 1000]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 4) == pytest.approx(ticks)


def test_running_mean_equals_a_loop() -> None:
    rng = random.Random(3)
    values = [rng.random() if rng.random() < 0.8 else math.nan for _ in range(200)]
    means = running_mean(values, share=0.1)
    for i, mean in enumerate(means):
        near = [v for v in values[max(0, i - 10) : i + 11] if math.isfinite(v)]
        assert mean == pytest.approx(sum(near) / len(near))
    assert math.isnan(running_mean([math.nan] * 3)[1])


def test_thinning_keeps_every_extreme() -> None:
    rng = random.Random(4)
    points = [(float(i), rng.gauss(0, 1)) for i in range(5000)]
    points[1234] = (1234.0, 50.0)
    points[4321] = (4321.0, -50.0)
    thin = thin_out(points, 400)
    assert len(thin) <= 400
    assert thin == sorted(thin)
    assert set(thin) <= set(points)
    assert {points[1234], points[4321]} <= set(thin)
    assert thin_out(points[:300], 400) == points[:300]


def test_markup_is_escaped_unless_it_is_markup() -> None:
    made = element(
        "p", "<b>&", Html("<i>x</i>"), None, [" a", "\u2028"], title='"q"', class_="c", hidden=False
    )
    assert made == '<p title="&quot;q&quot;" class="c">&lt;b&gt;&amp;<i>x</i> a\u27e8U+2028\u27e9</p>'
    assert escape("tab\tline\n") == "tab\tline\n"


def test_numbers_are_written_for_people() -> None:
    assert [format_count(x) for x in (0, 12345, 2_104_320, 3e9)] == ["0", "12,345", "2.1\u202fM", "3\u202fG"]
    assert [format_bytes(x) for x in (12, 4.4e7)] == ["12\u202fB", "44.0\u202fMB"]
    assert [format_duration(x) for x in (48.24, 59.99, 252, 7500)] == [
        "48.2\u202fs",
        "1\u202fmin 00\u202fs",
        "4\u202fmin 12\u202fs",
        "2\u202fh 05\u202fmin",
    ]
    assert [format_number(x) for x in (0.0, 1.5, 0.00031, 23.45, 1234.0, math.nan)] == [
        "0",
        "1.5",
        "3.1e-4",
        "23.4",
        "1,234",
        "\u2013",
    ]


def test_terminal_shows_the_figures_of_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(run, run / "report.html")
    printed = capsys.readouterr().out
    assert re.search(r"read +5,206 +71\.40\n", printed)
    assert re.search(r"filter +893 +4,313 +60\.00\n", printed)
    assert re.search(r"held out +26 +3,391 +44\.00\n", printed)
    values = {stage: json.loads((run / f"eval/{stage}.json").read_text()) for stage in STAGES}
    for stage in STAGES:
        for key in ("bits_per_byte", "format", "arithmetic"):
            found = values[stage][key]
            assert f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in printed
    sft, rlvr = ([c == "1" for c in values[stage]["arithmetic"]["outcomes"]] for stage in ("sft", "rlvr"))
    change = paired_difference(sft, rlvr)
    assert f"RLVR: held-out arithmetic {100 * change.value:+.1f} points over SFT" in printed
    assert f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]" in printed
    assert printed.endswith(f"report: {run / 'report.html'}\n")


def test_terminal_leaves_out_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(tmp_path, tmp_path / "x.html")
    assert capsys.readouterr().out == f"report: {tmp_path / 'x.html'}\n"
