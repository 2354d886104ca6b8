"""The table of dialects: every caller that the server answers. A new one is one file and one line here."""

from assay.dialects import classify
from assay.dialects.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (classify.DIALECT,)
