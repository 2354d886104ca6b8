"""report.html and its pictures in a real browser: everything is there, nothing overlaps, nobody else is asked."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from assay.evaluation.evaluate import Evaluation
from assay.evaluation.figures import pictures_of
from assay.evaluation.metrics import MultiLabel, SingleLabel
from assay.evaluation.mistakes import AnyJudged
from assay.evaluation.pairs import Preference
from assay.evaluation.regression import Regression
from tests.e2e.test_docs_page import CHROMIUM, browser
from tests.test_cli_evaluate import TEXTS, evaluate, write
from tests.tiny import save_bert

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

# Pairs of texts that lie over each other by more than a hair.
OVERLAPS = """
(() => {
  const texts = [...document.querySelectorAll('text')].filter(text => text.textContent.trim());
  const boxes = texts.map(text => text.getBoundingClientRect());
  const over = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const wide = Math.min(boxes[i].right, boxes[j].right) - Math.max(boxes[i].left, boxes[j].left);
    const high = Math.min(boxes[i].bottom, boxes[j].bottom) - Math.max(boxes[i].top, boxes[j].top);
    if (wide > 1 && high > 2.5) over.push(texts[i].textContent + ' / ' + texts[j].textContent);
  }
  return JSON.stringify({texts: texts.length, over});
})()
"""


def pictures(judged: AnyJudged, labels: tuple[str, ...]) -> list[Any]:
    one = SimpleNamespace(labels=labels, first=SimpleNamespace(judged=judged), comparison=None)
    return pictures_of(cast(Evaluation, one))


def single(count: int) -> SingleLabel:
    generator = np.random.default_rng(0)
    powers = np.exp(generator.normal(size=(300, count)))
    return SingleLabel(generator.integers(0, count, 300), powers / powers.sum(axis=1, keepdims=True))


def multi(count: int) -> MultiLabel:
    generator = np.random.default_rng(0)
    return MultiLabel(generator.random((300, count)) < 0.3, generator.random((300, count)), np.full(count, 0.5))


def named(count: int) -> tuple[str, ...]:
    return tuple(f"a_label_whose_name_is_long_{i}" if i % 3 else f"label {i}" for i in range(count))


def pairs() -> Preference:
    generator = np.random.default_rng(0)
    return Preference(generator.normal(0.5, 1, 200), generator.normal(0, 1, 200))


def regression() -> Regression:
    return Regression(np.random.default_rng(0).normal(size=(50, 2)), np.random.default_rng(1).normal(size=(50, 2)))


def test_the_same_data_is_the_same_picture() -> None:
    first, second = (pictures(pairs(), ()) for _ in range(2))
    assert first == second


def test_a_label_is_no_formula() -> None:
    shown = pictures(single(2), ("$x^{2}$", r"\frac{ & <b>"))
    assert all(
        "$x^{2}$" in picture.svg for picture in shown if picture.title in ("Confusion matrix", "Scores by label")
    )
    assert "\\frac{ &amp; &lt;b&gt;" in shown[0].svg


def test_labels_that_no_row_has_can_be_drawn() -> None:
    judged = multi(3)
    judged.targets[:] = False
    assert len(pictures(judged, named(3))) == 5


@needs_browser
@pytest.mark.slow
def test_no_label_lies_over_another(tmp_path: Path) -> None:
    (tmp_path / "browser").mkdir()
    cases = [(single(n), named(n)) for n in (2, 77)] + [(multi(n), named(n)) for n in (1, 28)]
    drawn = [(f"{len(labels)} labels", pictures(judged, labels)) for judged, labels in cases]
    drawn += [("pairs", pictures(pairs(), ())), ("numbers", pictures(regression(), named(2)))]
    found = {}
    with browser(tmp_path / "browser") as page:
        for name, some in drawn:
            for picture in some:
                file = tmp_path / "picture.svg"
                file.write_text(picture.svg, "utf-8")
                page.do("Page.navigate", url=f"file://{file}?{name}{picture.title}".replace(" ", "_"))
                page.until(f"document.URL.endsWith('{f'{name}{picture.title}'.replace(' ', '_')}')")
                seen = json.loads(page.until(OVERLAPS))
                assert seen["texts"] > 5
                if seen["over"]:
                    found[f"{name}, {picture.title}"] = seen["over"][:4]
    assert found == {}


@needs_browser
@pytest.mark.slow
def test_the_page_is_whole_and_asks_nobody(tmp_path: Path) -> None:
    nasty = {0: "<script>alert(1)</script>", 1: "日本語", 2: "plain"}
    save_bert(tmp_path / "model", id2label=nasty, num_hidden_layers=1)
    rows = [(f"<img src=https://example.com/x.png> {text}", nasty[i % 3]) for i, text in enumerate(TEXTS)]
    data = write(tmp_path / "data.csv", ("text", "label"), rows)
    options = ("--on-too-long", "truncate", "--compare-quantization", "int8")
    evaluate(tmp_path, data, "-m", tmp_path / "model", *options)
    (tmp_path / "browser").mkdir()
    with browser(tmp_path / "browser") as page:
        for domain in ("Page", "Network", "Log", "Runtime"):
            page.do(f"{domain}.enable")
        page.do("Page.navigate", url=f"file://{tmp_path / 'out' / 'report.html'}")
        page.until("document.readyState === 'complete' && document.images.length > 0")
        widths = json.loads(page.run("JSON.stringify([...document.images].map(image => image.naturalWidth))"))
        text = page.run("document.body.innerText")
        sideways = page.run("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert len(widths) == 5
    assert min(widths) > 200
    assert not sideways
    assert "<script>alert(1)</script>" in text
    assert "<img src=https://example.com/x.png>" in text
    asked = [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    complaints = [event for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert complaints == []
