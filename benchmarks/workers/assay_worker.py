"""assay in its own process: the library's `Classifier`, texts in, predictions out. Run by benchmarks.contender."""

from typing import Any

from lines import answer, latencies, read_texts, timed

from assay import Classifier


class AssayWorker:
    def load(self, model: str, texts: str, options: dict[str, Any]) -> dict[str, Any]:
        self.classifier = Classifier(model, **options)
        self.texts = read_texts(texts)
        return {"modes": ["packed"]}

    def score(self, mode: str, every: int = 1) -> dict[str, float]:
        texts = self.texts[::every]
        return timed(lambda: self.classifier.classify(texts))

    def latency(self, text: str, seconds: float) -> list[float]:
        return latencies(lambda: self.classifier.classify(text), seconds)

    def logits(self, count: int) -> list[list[float]]:
        return [prediction.logits for prediction in self.classifier.classify(self.texts[:count], activation="none")]


if __name__ == "__main__":
    worker = AssayWorker()
    answer({"load": worker.load, "score": worker.score, "latency": worker.latency, "logits": worker.logits})
