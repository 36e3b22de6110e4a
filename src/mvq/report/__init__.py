"""HTML reports: one file with its plots inside, of the demo and of machines (`machine`). Needs `mvq[report]`."""

from mvq.report.html import render, write_html

__all__ = ["render", "write_html"]
