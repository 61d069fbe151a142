"""Tables, curves, pictures and the report page of finished runs."""

from lshfm_pl.reporting.rows import summary_rows, write_csv
from lshfm_pl.reporting.tables import comparison_table, write_markdown

__all__ = [
    "comparison_table",
    "summary_rows",
    "write_csv",
    "write_markdown",
]
