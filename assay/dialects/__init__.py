"""The table of dialects: every caller that the server answers. A new one is one file and one line here."""

from assay.dialects import (
    classify,
    detector,
    guardrail,
    hf_inference,
    items,
    kserve,
    moderation,
    native,
    rerank,
    reward,
    scoring,
    tei,
)
from assay.dialects.dialect import Dialect

# In this order they are asked for a path that several share; the first is the default, there and for unknown paths.
DIALECTS: tuple[Dialect, ...] = (
    classify.DIALECT,
    native.DIALECT,
    native.EMBEDDINGS,
    scoring.SCORE,
    scoring.POOLING,
    rerank.DIALECT,
    tei.PREDICT,
    tei.RERANK,
    items.DIALECT,
    hf_inference.SEMANTIC_ROUTER,
    hf_inference.HF_INFERENCE,
    reward.DIALECT,
    moderation.DIALECT,
    detector.DIALECT,
    guardrail.DIALECT,
    kserve.PREDICT,
    kserve.INFER,
)

PATHS: dict[str, tuple[Dialect, ...]] = {
    path: tuple(dialect for dialect in DIALECTS if path in dialect.paths)
    for path in dict.fromkeys(path for dialect in DIALECTS for path in dialect.paths)
}


def spoken_at(path: str) -> Dialect:
    """Whose shape a refusal has where no dialect answers: the path's, else that of the paths around it."""
    around = (dialect for dialect in DIALECTS if path.startswith(dialect.prefixes))
    return PATHS[path][0] if path in PATHS else next(around, DIALECTS[0])
