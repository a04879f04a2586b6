"""What each stage's model can do, how sure that is, and what it writes."""

from collections.abc import Mapping, Sequence

from pylm.eval.compare import Estimate
from pylm.report.bars import Bar, bar_chart
from pylm.report.figures import (
    BITS,
    METRICS,
    Metric,
    change_of,
    count_of,
    estimate_of,
    evaluated_stages,
    read_estimate,
    stage_before,
)
from pylm.report.headline import change_text, interval_text
from pylm.report.html import Html, element, format_bytes, format_percent, join, preformatted
from pylm.report.run_folder import TITLES, Json, Record, RunFolder, child, number

_COMPRESSORS = (
    ("xz", "xz \u22129", "all files in one stream"),
    ("zstd", "zstd \u221219", "file by file"),
    ("gzip", "gzip \u22129", "file by file"),
)


def compression_section(run: RunFolder) -> Html | None:
    """The pretrained model against general compressors on the same text."""
    stage = next((name for name in evaluated_stages(run) if estimate_of(run, name, BITS)), None)
    if stage is None:
        return None
    record = run.evaluations[stage]
    bits = estimate_of(run, stage, BITS)
    assert bits is not None
    baselines = [
        (label, note, value)
        for key, label, note in _COMPRESSORS
        if (value := number(child(record, "compression").get(key))) is not None
    ]
    bars = [
        Bar(
            f"{TITLES[stage]} model",
            bits.value,
            f"{bits.value:.3f}",
            tone=1,
            low=bits.low,
            high=bits.high,
            note=f"windows of {number(child(record, 'bits_per_byte').get('seq_len')) or 0:.0f} tokens",
        )
    ]
    bars += [Bar(label, value, f"{value:.3f}", note=note) for label, note, value in baselines]
    chart = bar_chart(
        bars,
        description="Bits per byte of held-out text: model and compressors.",
        caption=_coverage(child(record, "bits_per_byte")),
    )
    finding: list[Html | str] = [
        "The model needs ",
        element("b", f"{bits.value:.3f} bits"),
        " for a byte of text it has not seen",
    ]
    if baselines:
        label, _, best = min(baselines, key=lambda baseline: baseline[2])
        share = 1.0 - bits.value / best
        words = f"{format_percent(abs(share))} {'less' if share >= 0 else 'more'} than {label}"
        finding += [", ", element("b", words), ", the best compressor here"]
    return join([element("p", *finding, ".", class_="finding"), chart])


def _coverage(record: Record) -> str:
    taken, total = number(record.get("num_bytes")) or 0.0, number(record.get("of_bytes")) or 0.0
    documents, of_documents = (
        number(record.get("num_documents")) or 0,
        number(record.get("of_documents")) or 0,
    )
    what = (
        f"all {documents:.0f} held-out documents, {format_bytes(taken)}"
        if taken >= total
        else f"a sample of {documents:.0f} of {of_documents:.0f} held-out documents, "
        f"{format_bytes(taken)} of {format_bytes(total)}"
    )
    return (
        f"Bits per byte on {what}. Whisker: 95\u202f% interval over documents. Compressors saw the same text."
    )


def evaluation_section(run: RunFolder) -> Html | None:
    """Metrics by stage with intervals and paired changes; then by task."""
    stages = evaluated_stages(run)
    if not stages:
        return None
    rows = []
    for metric in METRICS:
        cells = [_cell(run, stage, metric) for stage in stages]
        if any(cells):
            rows.append(
                element(
                    "tr",
                    element("th", metric.name, element("small", metric.note), scope="row"),
                    *(cell or element("td", "\u2013", class_="num") for cell in cells),
                )
            )
    if not rows:
        return None
    head = element("tr", element("th", "Measure", scope="col"), *_stage_heads(stages))
    table = element("table", element("thead", head), element("tbody", *rows))
    finding = element(
        "p",
        "Greedy answers. Small print: 95\u202f% interval; then the change since the stage before, over the "
        "same items, in colour where its interval leaves out zero.",
        class_="finding",
    )
    return join([finding, element("div", table, class_="scroll", tabindex="0"), _by_task(run, stages)])


def _stage_heads(stages: Sequence[str]) -> list[Html]:
    return [element("th", TITLES[stage], scope="col", class_="num") for stage in stages]


def _cell(run: RunFolder, stage: str, metric: Metric) -> Html | None:
    estimate = estimate_of(run, stage, metric)
    if estimate is None:
        return None
    scale, digits = (100.0, 1) if metric.is_share else (1.0, 3)
    main = format_percent(estimate.value) if metric.is_share else f"{estimate.value:.3f}"
    count = count_of(run, stage, metric)
    before = stage_before(run, stage)
    change = change_of(run, before, stage, metric) if before else None
    return element(
        "td",
        element("span", main, class_="main"),
        element(
            "small",
            interval_text(estimate, scale=scale, digits=digits),
            f" \u00b7 n\u202f=\u202f{count:,}" if count else None,
        ),
        _change(change, metric, scale, digits),
        class_="num",
    )


def _change(change: Estimate | None, metric: Metric, scale: float, digits: int) -> Html | None:
    if change is None:
        return None
    is_sure = change.low > 0 or change.high < 0
    is_better = (change.value > 0) == metric.is_share
    tone = ("up" if is_better else "down") if is_sure else None
    words = change_text(change, scale=scale, digits=digits)
    bounds = interval_text(change, scale=scale, digits=digits)
    return element("small", element("span", f"{words} {bounds}", class_=tone))


def _by_task(run: RunFolder, stages: Sequence[str]) -> Html | None:
    """A table of format and exact rates for each task."""
    tasks = sorted(
        {task for stage in stages for task in child(run.evaluations[stage], "exact_match", "by_task")}
    )
    if not tasks:
        return None
    rows = []
    for task in tasks:
        cells = []
        total = 0.0
        for stage in stages:
            form, exact = (
                child(run.evaluations[stage], key, "by_task", task) for key in ("format", "exact_match")
            )
            total = max(total, number(exact.get("num_total")) or 0.0)
            text = [
                format_percent(value.value) if value else "\u2013"
                for value in map(read_estimate, (form, exact))
            ]
            cells.append(element("td", text[1], element("small", f"{text[0]} in format"), class_="num"))
        rows.append(
            element(
                "tr",
                element(
                    "th", element("code", task), element("small", f"n\u202f=\u202f{total:.0f}"), scope="row"
                ),
                *cells,
            )
        )
    head = element("tr", element("th", "Task", scope="col"), *_stage_heads(stages))
    table = element("table", element("thead", head), element("tbody", *rows))
    return element(
        "details",
        element("summary", "By task: right answers, and answers in the asked format"),
        element("div", element("div", table, class_="scroll", tabindex="0"), class_="body"),
    )


def samples_section(run: RunFolder) -> Html | None:
    """The same prompts answered by each stage's model."""
    stages = [stage for stage in evaluated_stages(run) if _samples(run.evaluations[stage])]
    if not stages:
        return None
    prompts: dict[str, Record] = {}
    answers: dict[tuple[str, str], Record] = {}
    for stage in stages:
        for sample in _samples(run.evaluations[stage]):
            prompt = str(sample.get("prompt"))
            prompts.setdefault(prompt, sample)
            answers[prompt, stage] = sample
    finding = element("p", "The same prompts for every stage, not picked by their answers.", class_="finding")
    return join(
        [
            finding,
            *(
                element(
                    "div",
                    _prompt(sample),
                    element(
                        "div",
                        *(_answer(stage, answers.get((prompt, stage))) for stage in stages),
                        class_="answers",
                    ),
                    class_="sample",
                )
                for prompt, sample in prompts.items()
            ),
        ]
    )


def _samples(record: Record) -> list[Mapping[str, Json]]:
    samples = record.get("samples")
    return [sample for sample in samples if isinstance(sample, Mapping)] if isinstance(samples, list) else []


def _prompt(sample: Record) -> Html:
    is_chat = sample.get("kind") != "text"
    expected = sample.get("expected")
    return element(
        "div",
        element("p", "Asked" if is_chat else "Text to go on with", class_="who"),
        preformatted(str(sample.get("prompt"))),
        element("p", "Right: ", element("code", str(expected)), class_="who") if expected else None,
        class_="prompt",
    )


def _answer(stage: str, sample: Record | None) -> Html:
    if sample is None:
        return element(
            "div", element("p", TITLES[stage], class_="who"), preformatted("not asked", class_="empty")
        )
    text = str(sample.get("completion", ""))
    correct = sample.get("correct")
    verdict = None
    if isinstance(correct, bool):
        words = "right" if correct else ("wrong" if sample.get("formatted") is not False else "wrong form")
        verdict = element("span", words, class_=f"verdict {'right' if correct else 'wrong'}")
    elif sample.get("finished") is False and sample.get("kind") != "text":
        verdict = element("span", "cut off", class_="verdict")
    shown = preformatted(text) if text.strip() else preformatted("(nothing)", class_="empty")
    return element("div", element("p", TITLES[stage], verdict, class_="who"), shown)
