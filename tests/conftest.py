"""Fixtures that several files share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anybody imports torch, and for every process that a test starts: on tiny models OpenMP's spinning threads only
# fight each other, by factors where the machine has other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data that is not part of the repository: ASSAY_TEST_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("ASSAY_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set ASSAY_TEST_DATA to its folder")
    return folder


@pytest.fixture(params=[16, 8, 0], ids=["wide", "narrow", "torch"], scope="module")
def vectors(request: pytest.FixtureRequest) -> Iterator[int]:
    """Everything with assay's own kernels, in each width of vectors, and without them. For whole files of tests."""
    from assay.model import compiled

    kernels = compiled.library() if request.param else None
    if request.param and kernels is None:
        pytest.skip("no kernels were compiled, or this CPU has no vectors for them")
    if kernels is not None and kernels.assay_use(request.param) != request.param:
        from .wide import emulated

        kernels = emulated(request.config.cache.mkdir("kernels"))
        assert kernels.assay_use(request.param) == request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: kernels)
        yield request.param
    if kernels is not None:
        kernels.assay_use(compiled.WIDEST)


@pytest.fixture(autouse=True)
def _logs_end_with_the_test() -> Iterator[None]:
    """The command line sets handlers on the stderr that it finds, which a test's capture closes at the test's end."""
    loggers = [logging.getLogger(), logging.getLogger("assay.access")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        for handler in set(logger.handlers) - set(handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
