"""The one command: GoEmotions in, the bundled model folder out. `python -m training.train --data DIR --out DIR`."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from training.card import write_card
from training.evaluate import evaluate
from training.export import export
from training.goemotions import read_labels, read_split
from training.student import train_student
from training.teacher import train_teacher


def main() -> None:
    """Train the teacher, then the student; export, measure, and put the finished folder in place in one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="train.tsv, dev.tsv, test.tsv and labels.txt")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write or replace")
    parser.add_argument(
        "--work", type=Path, default=Path("build/training"), help="checkpoints; a teacher here is reused"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    train, dev = read_split(options.data, "train"), read_split(options.data, "dev")
    teacher, student = options.work / "teacher", options.work / "student"
    began = time.monotonic()
    if not (teacher / "finished").exists():
        train_teacher(train, dev, read_labels(options.data), teacher)
        (teacher / "finished").touch()
    train_student(teacher, train, dev, student)
    print(f"trained in {(time.monotonic() - began) / 60:.0f} minutes", flush=True)
    publish(options.data, teacher, student, options.work / "export", options.out)


def publish(data: Path, teacher: Path, student: Path, staging: Path, out: Path) -> None:
    """Export the student, measure the exported files and the teacher, write the card, and swap the folder in."""
    shutil.rmtree(staging, ignore_errors=True)
    export(student, staging)
    dev, test = read_split(data, "dev"), read_split(data, "test")
    reports = {"teacher": evaluate(teacher, dev, test), "student": evaluate(staging, dev, test)}
    metrics = {name: report.as_json(read_labels(data)) for name, report in reports.items()}
    (staging / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    write_card(staging, reports["teacher"], reports["student"], read_labels(data))
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(staging, fresh)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


if __name__ == "__main__":
    main()
