"""What deploy/ asks of /metrics is there: every metric, label and value in every panel and alert, on a real server."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.process import in_process
from tests.tiny import save_bert

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "assay.json").read_text("utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))
SCRAPE = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}

SCRAPED = {"job", "instance"}  # labels that Prometheus itself adds to all
OF_PROMETHEUS = {"up"}  # metrics that it makes itself
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}


@dataclass
class Expression:
    """metrics: name → matchers (label, operator, value). grouped: labels named in by, on, ignoring and the like."""

    metrics: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)


def parse(text: str) -> Expression:
    """A tokenizer is enough: names that are no function and no word, their braces, and what is grouped by."""
    found = Expression()
    for groups in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", text):
        found.grouped |= {name.strip() for name in groups.split(",") if name.strip()}
    rest = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    rest = re.sub(r"\[[^\]]*\]", " ", rest)
    for name, braces in re.findall(
        r"(?<![\w:.])([A-Za-z_:][\w:]*)(?!\s*\(|[\w:])\s*(\{[^}]*\})?", rest_without_strings(rest)
    ):
        if name not in WORDS:
            matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', restored(braces))
            found.metrics.setdefault(name, []).extend(matchers)
    return found


def rest_without_strings(text: str) -> str:
    """Strings as numbers in hexadecimal, so that what stands in them is no name."""
    return re.sub(r'"([^"]*)"', lambda match: f'"0{match[1].encode().hex()}"', text)


def restored(text: str) -> str:
    return re.sub(r'"0([0-9a-f]*)"', lambda match: f'"{bytes.fromhex(match[1]).decode()}"', text)


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL)."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']}: {target['refId']}", target["expr"]
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert inner is not None, variable["definition"]
            yield f"variable {variable['name']}", f"sum by ({inner[2]}) ({inner[1]})"


EXPRESSIONS = dict(expressions())

Series = dict[str, list[dict[str, str]]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def series(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Series]:
    """Every sample's labels on the /metrics of a server that has scored, refused and failed."""
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, num_hidden_layers=1)
    async with in_process(folder, served_model_name="tiny") as running:
        await running.classify(input="great")
        await running.classify(input="")
        running.service.engines[0].refuse()
        assert (await running.classify(input="great")).status_code == 503
        text = (await running.client.get("/metrics")).text
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    yield found


def complaints(expression: str, series: Series) -> list[str]:
    """What the expression names and the server does not have."""
    parsed, found = parse(expression), []
    for name, matchers in parsed.metrics.items():
        if name in OF_PROMETHEUS:
            continue
        if name not in series:
            found.append(f"no metric {name}")
            continue
        labels = {label for sample in series[name] for label in sample} | SCRAPED
        found += [f"{name} has no label {label}" for label in parsed.grouped - labels]
        for label, operator, value in matchers:
            if label not in labels:
                found.append(f"{name} has no label {label}")
            elif label not in SCRAPED and "$" not in value and operator in ("=", "=~"):
                pattern = value if operator == "=~" else re.escape(value)
                for part in pattern.split("|"):
                    if not any(re.fullmatch(part, sample.get(label, "")) for sample in series[name]):
                        found.append(f"{name} never has {label}={part}")
    return found


@pytest.mark.parametrize("where", EXPRESSIONS)
async def test_what_is_asked_for_exists(series: Series, where: str) -> None:
    assert parse(EXPRESSIONS[where]).metrics, "an expression without a metric"
    assert complaints(EXPRESSIONS[where], series) == []


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(assay_nope_total[5m])", "no metric assay_nope_total"),
        ("sum by (nope) (assay_queue_tokens)", "assay_queue_tokens has no label nope"),
        ('assay_queue_tokens{nope="x"}', "assay_queue_tokens has no label nope"),
        ('assay_model_state{state="gone"} == 1', "assay_model_state never has state=gone"),
        ('assay_errors_total{type=~"queue_full|gone"}', "assay_errors_total never has type=gone"),
        ("histogram_quantile(0.99, sum by (le) (rate(assay_request_seconds[5m])))", "no metric assay_request_seconds"),
        ("1 + assay_tokens", "no metric assay_tokens"),
    ],
)
async def test_the_check_sees(series: Series, expression: str, complaint: str) -> None:
    assert complaint in complaints(expression, series)


async def test_the_parser() -> None:
    parsed = parse('sum by (a, le) (rate(x_total{b=~"y|z(", c!="w"}[5m])) / ignoring (d) group_left z:w offset 5m')
    assert parsed.metrics == {"x_total": [("b", "=~", "y|z("), ("c", "!=", "w")], "z:w": []}
    assert parsed.grouped == {"a", "le", "d"}


async def test_legends_name_labels_that_are_there(series: Series) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            parsed = parse(target["expr"])
            kept = parsed.grouped or {label for name in parsed.metrics for sample in series[name] for label in sample}
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= kept | SCRAPED, f"{panel['title']}: {named}"


async def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells, f"{panel['title']} lies over another panel"
        cells |= own
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used <= VARIABLES


async def test_alerts_say_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


async def test_the_scrape_reads_the_alerts_under_the_job_that_they_name() -> None:
    assert SCRAPE["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in SCRAPE["scrape_configs"]] == ["assay"]
    jobs = [value for text in EXPRESSIONS.values() for matchers in parse(text).metrics.values()
            for label, _, value in matchers if label == "job"]  # fmt: skip
    assert set(jobs) == {"assay"}


async def promtool(folder: Path, *arguments: str) -> None:
    """Debian has it in the package prometheus."""
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not installed")
    process = await asyncio.create_subprocess_exec(
        command, *arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()


@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]])
async def test_promtool_agrees(arguments: list[str]) -> None:
    await promtool(DEPLOY / "prometheus", *arguments)


async def test_promtool_parses_every_panel(tmp_path: Path) -> None:
    """As recording rules: PromQL that Prometheus itself can read."""
    rules: list[dict[str, Any]] = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(EXPRESSIONS.values())
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    await promtool(tmp_path, "check", "rules", "rules.yml")


async def test_the_docs_name_every_metric_and_no_other(series: Series) -> None:
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text("utf-8")
    names = {name for name in series if name.startswith("assay_") and not name.endswith("_created")}
    theirs = {re.sub("_(bucket|count|sum)$", "", name) for name in names}
    assert set(re.findall(r"\bassay_[a-z_]+", page)) == theirs
