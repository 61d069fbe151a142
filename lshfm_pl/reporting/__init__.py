"""What is made of finished runs: tables and pictures."""

from lshfm_pl.drawing.boxes import detection_grid, draw_detections
from lshfm_pl.reporting.tables import comparison_table, summary_rows, write_csv, write_markdown

__all__ = [
    "comparison_table",
    "detection_grid",
    "draw_detections",
    "summary_rows",
    "write_csv",
    "write_markdown",
]
