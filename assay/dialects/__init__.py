"""The table of dialects: every caller that the server answers. A new one is one file and one line here."""

from assay.dialects import classify
from assay.dialects.dialect import Dialect

# In this order they are asked for a path that several share; the first is the default, there and for unknown paths.
DIALECTS: tuple[Dialect, ...] = (classify.DIALECT,)

PATHS: dict[str, tuple[Dialect, ...]] = {
    path: tuple(dialect for dialect in DIALECTS if path in dialect.paths)
    for path in dict.fromkeys(path for dialect in DIALECTS for path in dialect.paths)
}
