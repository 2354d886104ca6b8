"""The synchronous face: what it takes, what it refuses, threads, closing. Nothing here may hang."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import assay
from assay.classifier import Classifier, _event_loop
from assay.errors import AssayError, CheckpointError, ConfigError, ContextLengthError, RequestError
from assay.sequence import Prediction
from tests.tiny import save_bert

MAX_LEN = 32
PATIENCE = 5  # seconds after which a call is taken to hang


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_bert(folder, num_hidden_layers=1, max_position_embeddings=MAX_LEN)
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Iterator[Classifier]:
    with Classifier(str(folder)) as classifier:
        yield classifier


def in_time(call: Callable[[], Any]) -> Any:
    """A call's result or its error; a failure when it hangs. On a daemon thread, so that a hang ends with the tests."""
    result: list[Any] = []

    def target() -> None:
        try:
            result.append(call())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert result, "the call hangs"
    return result[0]


def test_exported_from_the_package() -> None:
    assert assay.Classifier is Classifier
    assert assay.Prediction is Prediction
    assert {"Classifier", "Prediction"} <= vars(assay).keys()  # kept, and not imported at each use


def test_imported_without_numpy_in_silence() -> None:
    """As a plain installation is, for which torch has a warning."""
    script = "import sys; sys.modules['numpy'] = None; from assay import Classifier"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_one_text(classifier: Classifier) -> None:
    (prediction,) = classifier.classify("the coffee was great")
    assert prediction.label in classifier.labels
    assert len(prediction.probs) == len(prediction.logits) == len(classifier.labels) == 3
    assert sum(prediction.probs) == pytest.approx(1)
    assert prediction.num_tokens == 6


def test_texts_pairs_ids_and_any_iterable(classifier: Classifier) -> None:
    inputs = ["the coffee", ("the", "coffee"), [2, 5, 6, 3]]
    text, pair, token_ids = classifier.classify(inputs)
    assert [p.num_tokens for p in (text, pair, token_ids)] == [4, 5, 4]
    assert text.logits == pytest.approx(token_ids.logits, abs=2e-5)
    assert text.logits != pytest.approx(pair.logits, abs=1e-2)
    again = classifier.classify(item for item in inputs)
    assert [p.logits for p in again] == [pytest.approx(p.logits, abs=2e-5) for p in (text, pair, token_ids)]
    assert classifier.classify(tuple(inputs))[2].label == token_ids.label


def test_nothing_in_nothing_out(classifier: Classifier) -> None:
    assert classifier.classify([]) == []


@pytest.mark.parametrize(
    "bad",
    [None, 3, 2.5, {"text": "a"}, b"bytes", [], ["a", "b"], [1, "a"], [True], ("a",), ("a", "b", "c"), ("a", 1)],
    ids=repr,
)
def test_wrong_types_are_named(classifier: Classifier, bad: Any) -> None:
    with pytest.raises(RequestError, match=type(bad).__name__) as caught:
        classifier.classify(["fine", bad])
    assert caught.value.status == 400


def test_bytes_are_not_a_text(classifier: Classifier) -> None:
    with pytest.raises(RequestError):
        classifier.classify(b"the coffee")  # type: ignore[arg-type]


@pytest.mark.parametrize("token_ids", [[-1], [10**6], [2**70]], ids=repr)
def test_ids_out_of_vocabulary(classifier: Classifier, token_ids: list[int]) -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        classifier.classify([token_ids])


def test_lone_surrogate(classifier: Classifier) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        classifier.classify("\ud800")


def test_more_inputs_than_one_chunk(classifier: Classifier) -> None:
    inputs = [[5 + i % 90] * (1 + i % 5) for i in range(1300)]
    predictions = classifier.classify(inputs)
    assert [p.num_tokens for p in predictions] == [len(token_ids) for token_ids in inputs]
    for i in (0, 511, 512, 1023, 1024, 1299):
        assert predictions[i].logits == pytest.approx(classifier.classify([inputs[i]])[0].logits, abs=2e-5)


@pytest.mark.parametrize("index", [0, 511, 512, 1299])
def test_a_bad_input_is_named_by_its_own_index(classifier: Classifier, index: int) -> None:
    """The chunks are ours; the caller counts from the first input."""
    inputs: list[Any] = [[5]] * 1300
    inputs[index] = [5] * (MAX_LEN + 1)
    with pytest.raises(ContextLengthError, match=rf"index {index}\b"):
        classifier.classify(inputs)


def test_an_error_in_the_first_chunk_leaves_nothing_behind(folder: Path) -> None:
    """The chunk that was tokenized ahead must leave the queue too: nobody will ever read its answers."""
    with Classifier(str(folder), max_batch_tokens=8) as classifier:
        engine = classifier._engine
        hold = threading.Event()
        run = engine._worker.runner.run
        engine._worker.runner.run = lambda batch: (hold.wait(PATIENCE), run(batch))[1]  # type: ignore[method-assign]
        inputs: list[Any] = [[5 + i % 90] * 7 + [5 + i // 90] for i in range(1024)]
        inputs[0] = [5] * (MAX_LEN + 1)
        try:
            with pytest.raises(ContextLengthError):
                classifier.classify(inputs)
            deadline = time.monotonic() + 2
            while (engine._waiters or engine._admission.tokenizing) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not engine._waiters
            assert engine._scheduler.num_tokens == 0
        finally:
            hold.set()


def test_an_error_leaves_the_classifier_usable(classifier: Classifier) -> None:
    with pytest.raises(RequestError):
        classifier.classify([[10**6]])
    assert len(classifier.classify("the coffee")) == 1


def test_several_threads(classifier: Classifier) -> None:
    texts = [f"coffee {'so ' * (i % 7)}great {i}" for i in range(40)]
    expected = [classifier.classify(text)[0] for text in texts]

    def work(offset: int) -> bool:
        order = texts[offset:] + texts[:offset]
        wanted = expected[offset:] + expected[:offset]
        got = classifier.classify(order)
        return all(p.logits == pytest.approx(q.logits, abs=2e-5) for p, q in zip(got, wanted, strict=True))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(work, range(0, 36, 3)))


# Options.


def test_too_long_is_refused_unless_asked_to_truncate(classifier: Classifier) -> None:
    text = "coffee " * 100
    with pytest.raises(ContextLengthError, match=f"{MAX_LEN} tokens"):
        classifier.classify(text)
    (prediction,) = classifier.classify(text, truncate_prompt_tokens=-1)
    assert prediction.num_tokens == MAX_LEN
    (prediction,) = classifier.classify(text, truncate_prompt_tokens=9)
    assert prediction.num_tokens == 9
    assert prediction.logits == pytest.approx(classifier.classify("coffee " * 7)[0].logits, abs=2e-5)


def test_activation_none_gives_raw_logits(classifier: Classifier) -> None:
    (raw,) = classifier.classify("the coffee", activation="none")
    (soft,) = classifier.classify("the coffee")
    assert raw.probs == raw.logits == pytest.approx(soft.logits, abs=2e-5)
    assert raw.label == soft.label


def test_activation_of_the_config(folder: Path) -> None:
    with Classifier(str(folder), activation="sigmoid") as classifier:
        (prediction,) = classifier.classify("the coffee")
        assert sum(prediction.probs) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "softmaxx"},
        {"truncation_side": "middle", "truncate_prompt_tokens": 3},
        {"truncate_prompt_tokens": "3"},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": 10**6},
        {"priority": "high"},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_and_the_next_call_works(folder: Path, options: dict[str, Any]) -> None:
    with Classifier(str(folder)) as classifier:
        error = in_time(lambda: classifier.classify("the coffee was great", **options))
        assert isinstance(in_time(lambda: classifier.classify("the coffee")), list), "a typo ended the engine"
        assert isinstance(error, RequestError)


def test_an_unknown_option_is_a_type_error(classifier: Classifier, folder: Path) -> None:
    with pytest.raises(TypeError, match="truncate"):
        classifier.classify("the coffee", truncate=True)
    with pytest.raises(TypeError, match="batch_size"):
        Classifier(str(folder), batch_size=3)


# Setup and closing.


def test_setup_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Classifier(str(tmp_path))
    with pytest.raises(ConfigError):
        Classifier(str(folder), dtype="int3")
    with pytest.raises(ConfigError):
        Classifier(str(folder), max_model_len=MAX_LEN + 1)


def test_a_path_object_will_do(folder: Path) -> None:
    with Classifier(folder) as classifier:  # type: ignore[arg-type]
        assert len(classifier.classify("the coffee")) == 1


def test_max_model_len(folder: Path) -> None:
    with Classifier(str(folder), max_model_len=4) as classifier:
        assert len(classifier.classify("the coffee")) == 1
        with pytest.raises(ContextLengthError):
            classifier.classify("the coffee was")


def test_close_twice_and_no_thread_is_left(folder: Path) -> None:
    before = set(threading.enumerate())
    classifier = Classifier(str(folder))
    classifier.classify("the coffee")
    classifier.close()
    classifier.close()
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("assay")]
    assert not left
    with Classifier(str(folder)) as another:
        another.close()


SCRIPT = """
import atexit, ctypes, os, sys, threading
from assay import Classifier
from assay.errors import UnavailableError

classifier = Classifier(sys.argv[1])
classifier.classify("the coffee")

def classify(inputs):
    try:
        classifier.classify(inputs)
    except UnavailableError as error:
        return str(error)

def forked(call):
    pid = os.fork()
    if not pid:
        sys.exit(call())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
ENDINGS = {
    "at exit": "",
    "at exit, while it computes": "threading.Thread(target=classify, args=(['the'] * 9999,), daemon=True).start()",
    "closed by the caller's own handler": "atexit.register(classifier.close)",
    "in a fork, which may not classify": "assert forked(lambda: 3 if 'fork' in classify('the coffee') else 4) == 3",
    "in a fork, by name": "assert forked(classifier.close) == 0; assert classify('the coffee') is None",
}


def ended(folder: Path, ending: str) -> tuple[int, str]:
    script = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT + ending, str(folder)]
    process = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    return process.returncode, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_process_ends_that_has_not_closed_it(folder: Path, ending: str) -> None:
    assert ended(folder, ending) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="on_exit is glibc's")
def test_no_timer_is_left_when_the_interpreter_has_gone(folder: Path) -> None:
    """One that came due between the end of the interpreter and that of the process, which sleeps here, was SIGSEGV."""
    ending = """
late = lambda: classifier._loop.call_later(2, print)
atexit.register(lambda: classifier._loop.call_soon_threadsafe(late))
libc = ctypes.CDLL(None)
libc.on_exit(libc.sleep, None)  # as many seconds as the exit status
sys.exit(4)
"""
    assert ended(folder, ending) == (4, "")


@pytest.mark.slow
def test_an_interrupt_while_it_loads(folder: Path) -> None:
    """A thread that came back from torch when the interpreter had gone ended the process by SIGABRT."""
    script = """
import os, signal, time, torch
from assay import Classifier
from assay.engine.engine import Engine

def load(config, metrics):
    os.kill(os.getpid(), signal.SIGINT)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        torch.ones(300, 300) @ torch.ones(300, 300)

Engine._load = load
Classifier("any")
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == -signal.SIGINT
    assert process.stderr.endswith("KeyboardInterrupt\n")


def test_without_uvloop_the_loop_is_asyncio_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = _event_loop()
    try:
        assert type(loop).__module__.startswith("asyncio.")
    finally:
        loop.close()


def test_close_at_once(folder: Path) -> None:
    in_time(Classifier(str(folder)).close)


def test_use_after_close_is_an_error_not_a_hang(folder: Path) -> None:
    classifier = Classifier(str(folder))
    classifier.close()
    assert isinstance(in_time(lambda: classifier.classify("the coffee")), AssayError)


def test_close_while_another_thread_waits(folder: Path) -> None:
    """The waiting call ends, with its answer or an error: it must not wait for a loop that has stopped."""
    classifier = Classifier(str(folder), max_batch_tokens=8)
    entered, hold = threading.Event(), threading.Event()
    run = classifier._engine._worker.runner.run

    def held(batch: Any) -> Any:
        entered.set()
        hold.wait(PATIENCE)
        return run(batch)

    classifier._engine._worker.runner.run = held  # type: ignore[method-assign]
    results: list[Any] = []

    def wait() -> None:
        try:
            results.append(classifier.classify([[5 + i % 90] * 7 + [5 + i // 90] for i in range(600)]))
        except Exception as error:
            results.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert entered.wait(PATIENCE)
    closing = threading.Thread(target=classifier.close, daemon=True)
    closing.start()
    time.sleep(0.05)
    hold.set()
    closing.join(PATIENCE)
    assert not closing.is_alive(), "close hangs"
    waiting.join(2)
    assert results, "the waiting call hangs"
    assert isinstance(results[0], AssayError | list)
