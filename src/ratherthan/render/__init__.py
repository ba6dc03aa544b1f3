"""Plain arrays in, pictures out: colours, overlays, figures and the HTML report. Knows no model and no torch."""

from ratherthan.render.colours import diverging, overlay, sequential, shared_limit
from ratherthan.render.figure import figure, figure_png, grid, overlay_png
from ratherthan.render.panel import Heatmap, Panel
from ratherthan.render.report import report_html, write_report

__all__ = [
    "Heatmap",
    "Panel",
    "diverging",
    "figure",
    "figure_png",
    "grid",
    "overlay",
    "overlay_png",
    "report_html",
    "sequential",
    "shared_limit",
    "write_report",
]
