"""The model card: card.md with the measured numbers put in. Knows the table's layout; measures nothing."""

from __future__ import annotations

from pathlib import Path
from string import Template

from training.evaluate import Report


def write_card(folder: Path, teacher: Report, student: Report, labels: list[str]) -> None:
    """Write `folder/README.md` from the template and the two reports."""
    template = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        threshold=f"{student.threshold:.2f}",
        macro_f1=f"{student.test.macro_f1:.3f}",
        table=_table(teacher, student),
        per_label=_per_label(student, labels),
        parameters=f"{student.parameters / 1e6:.1f}",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _table(teacher: Report, student: Report) -> str:
    rows = []
    for name, report in (("teacher, float32", teacher), ("**this model, float16**", student)):
        size = f"{report.parameters / 1e6:.1f} M"
        ways = (
            (f"one, {report.threshold:.2f}", report.dev, report.test),
            ("one per label", report.dev_per_label, report.test_per_label),
        )
        for way, dev, test in ways:
            numbers = (dev.macro_f1, test.macro_f1, test.micro_f1, test.macro_average_precision)
            rows.append(f"| {name} | {size} | {way} | " + " | ".join(f"{n:.3f}" for n in numbers) + " |")
    return "\n".join(rows)


def _per_label(student: Report, labels: list[str]) -> str:
    rows = []
    columns = zip(labels, student.test.per_label, student.thresholds, student.test_per_label.per_label, strict=True)
    for label, one, threshold, own in columns:
        rows.append(
            f"| {label} | {one['support']:.0f} | {one['precision']:.2f} | {one['recall']:.2f} | {one['f1']:.2f} "
            f"| {threshold:.2f} | {own['f1']:.2f} |"
        )
    return "\n".join(rows)
