"""Reports to Markdown, as it stands in benchmarks/results/README.md. Knows no measure and judges nothing."""

from collections.abc import Iterable
from typing import Any

from benchmarks.machine import line
from benchmarks.ratios import Ratio, ratios

Report = dict[str, Any]


def document(reports: dict[str, Report], peers: dict[str, Any], how: str = "../README.md") -> str:
    """reports: part → its report, of those that were measured; each with its `machine` and `plan`. how: where that is
    told, from where the document will lie.
    """
    blocks = [f"# Measured\n\nMade by `make bench`; how, is said in [benchmarks/README.md]({how})."]
    blocks += [_where(reports), _against_aims(ratios(reports))]
    blocks += [block(reports[part]) for part, block in _BLOCKS.items() if _ran(reports, part)]
    blocks += [_peers(peers), _not_run(reports, peers)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def rows(head: Iterable[str], body: Iterable[Iterable[object]]) -> str:
    """A Markdown table, the first column on the left and the others on the right."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([str(cell) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _where(reports: dict[str, Report]) -> str:
    """One line for all parts that were measured on the same machine and day, and what who measured has noted."""
    by_line: dict[str, list[str]] = {}
    for part, report in reports.items():
        of = {**report["machine"], "load_average": "…"}
        by_line.setdefault(f"{report['plan']} run on {line(of)}", []).append(
            f"{part} (load average {report['machine']['load_average']})"
        )
    lines = [
        f"- {where.replace('; load average at the start ….', '')}: {', '.join(of)}" for where, of in by_line.items()
    ]
    return "\n".join(lines + [f"- {part}: {report['note']}" for part, report in reports.items() if "note" in report])


def _against_aims(found: list[Ratio]) -> str:
    if not found:
        return ""
    body = [
        (one.name, _shown(one.value, one.unit), "" if one.aim is None else _aim(one), _VERDICT[one.reached])
        for one in found
    ]
    return "## Ratios, each within one run\n\n" + rows(("", "measured", "aim", "reached"), body)


def _aim(one: Ratio) -> str:
    return f"{'≤' if one.at_most else '≥'} {one.aim:g}{one.unit}"


def _shown(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 20 else 2 if abs(value) >= 0.1 or value == 0 else 4
    return f"{value:,.{digits}f}{unit}"


_VERDICT = {True: "yes", False: "no", None: ""}


def _throughput(report: Report) -> str:
    blocks = ["## In-process"]
    for model, found in report["models"].items():
        if "problem" in found:
            continue
        of = found["workload"]
        head = f"{of['texts']} texts, {of['tokens']} tokens (median {of['median_tokens']}, longest {of['longest']})"
        peak = f"GEMM peak {found['peak']['gflops']} GFLOP/s"
        body = [_race_row(name, one) for name, one in found["contenders"].items() if "problem" not in one]
        columns = (
            "contender",
            "precision",
            "tokens/s",
            "GFLOP/s",
            "of the peak",
            "16 tokens",
            "64",
            "256 tokens, ms",
            "Δ logit, at most",
        )
        blocks.append(f"### {model}\n\n{head}; {peak}; {found['rounds']} rounds.\n\n{rows(columns, body)}")
    return "\n\n".join(blocks)


def _race_row(name: str, one: Report) -> tuple[object, ...]:
    mode = "" if one["mode"] == "packed" else f" ({one['mode']})"
    speed = f"{one['tokens_per_second']:,}"
    logits = f"{one['largest_logit_difference']:.1g}"
    share = f"{100 * one['share_of_peak']:.0f} %"
    return (f"{name}{mode}", one["precision"], speed, one["gflops"], share, *one["latency_ms"].values(), logits)


def _http(report: Report) -> str:
    body = [
        (
            name,
            many,
            f"{one['requests_per_second']:.1f}",
            f"{one['tokens_per_second']:,.0f}",
            f"{one['p50_ms']:.1f}",
            f"{one['p99_ms']:.1f}",
            f"{100 * one['load_cpu_share']:.1f} %",
        )
        for name, by in report["servers"].items()
        for many, one in by.items()
    ]
    columns = ("server", "callers", "texts/s", "tokens/s", "p50, ms", "p99, ms", "CPU of the load")
    of = report["workload"]
    lengths = f"mixed lengths (median {of['median_tokens']} tokens)"
    head = f"{report['model']}, one text a request, {lengths}, {report['rounds']} rounds."
    picture = "![Throughput against latency](http.svg)"
    return f"## Behind HTTP\n\n{head}\n\n{picture}\n\n{rows(columns, body)}"


def _front(report: Report) -> str:
    body = [
        (f"{request}, {name}", f"{one['requests_per_second']:,.0f}", f"{one['p50_ms']:.2f}")
        for name, by in report["requests"].items()
        for request, one in by.items()
    ]
    head = (
        f"A model that computes nothing; the server on one core, {report['callers']} callers on another; medians of "
        f"{report['rounds']} rounds. Beside it uvicorn alone, with an application that answers a constant."
    )
    return f"## The HTTP front\n\n{head}\n\n{rows(('request', 'requests/s', 'p50, ms'), body)}"


def _fairness(report: Report) -> str:
    return (
        f"## One caller among bulk clients\n\n{report['model']}; the bulk clients get "
        f"{report['bulk_tokens_per_second']:,} tokens/s, a batch takes {report['batch_ms']} ms. One text of 20 tokens: "
        f"alone {report['alone_p50_ms']} ms, among them p50 {report['p50_ms']} ms, p99 {report['p99_ms']} ms = "
        f"{report['p99_batches']} batches' time ({report['interactive_requests']} requests)."
    )


def _footprint(report: Report) -> str:
    weights, start = report["weights_mib"], report["start_seconds"]
    body = [(name.replace("_", " "), held, held - weights) for name, held in report["memory_mib"].items()]
    return (
        f"## Memory and start\n\n{report['model']}, weights {weights} MiB; from the process's start to the first "
        f"answer {start['first_answer']} s, where `import torch` and reading the weights take "
        f"{start['import_torch_and_read_weights']} s.\n\n{rows(('resident', 'MiB', 'beyond the weights'), body)}"
    )


def _quality(report: Report) -> str:
    if "skipped" in report:
        return f"## Scores in int8\n\nNot measured: {report['skipped']}."
    f1 = report["macro_f1"]
    flips = f"{100 * report['top_label_flips']:.2f} % of the texts"
    decisions = f"{100 * report['decision_flips']:.3f} % of the label decisions at {report['threshold']:.2f} change"
    return (
        f"## Scores in int8\n\nThe bundled model on {report['texts']} texts of GoEmotions dev: the best label changes "
        f"for {flips}, {decisions}; macro-F1 {f1['float32']} in float32, {f1['int8']} in int8. Logits differ by "
        f"{report['mean_logit_difference']} on average."
    )


def _peers(peers: dict[str, Any]) -> str:
    body = [
        (name, ", ".join(f"{package} {number}" for package, number in versions.items()))
        for name, versions in peers.items()
        if "problem" not in versions
    ]
    return f"## Peers\n\n{rows(('environment', 'versions'), body)}" if body else ""


def _not_run(reports: dict[str, Report], peers: dict[str, Any]) -> str:
    """Everything that failed, with its own last words."""
    found = [f"{name}: {of['problem']}" for name, of in peers.items() if "problem" in of]
    for part, report in reports.items():
        found += [f"{part}: {report['problem']}"] if "problem" in report else []
        found += [f"{part}, {name}: {why}" for name, why in report.get("problems", {}).items()]
        for model, of in report.get("models", {}).items():
            found += [f"{part}, {model}: {of['problem']}"] if "problem" in of else []
            contenders = of.get("contenders", {}).items()
            found += [f"{part}, {model}, {name}: {one['problem']}" for name, one in contenders if "problem" in one]
    return "## Did not run\n\n" + "\n".join(f"- {one}" for one in found) if found else ""


def _ran(reports: dict[str, Report], part: str) -> bool:
    return part in reports and "problem" not in reports[part]


_BLOCKS = {
    "throughput": _throughput,
    "http": _http,
    "front": _front,
    "fairness": _fairness,
    "footprint": _footprint,
    "quality": _quality,
}
