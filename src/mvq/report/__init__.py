"""HTML reports: one file with its plots inside, for `mvq demo` and, in `mvq.report.machine`, for
`mvq simulate` and `mvq compare`. Needs `mvq[report]`."""

from mvq.report.html import render, write_html

__all__ = ["render", "write_html"]
