"""Plain arrays in, pictures out: colours, overlays, figures and the HTML page. Knows no model and no torch."""

from ratherthan.render.colours import diverging, overlay, sequential, shared_limit
from ratherthan.render.excerpt import Excerpt, draw_excerpts
from ratherthan.render.figure import figure, figure_png, grid
from ratherthan.render.page import write_page
from ratherthan.render.panel import Heatmap, Panel
from ratherthan.render.trajectory import Trajectory, draw_probabilities, draw_trajectories

__all__ = [
    "Excerpt",
    "Heatmap",
    "Panel",
    "Trajectory",
    "diverging",
    "draw_excerpts",
    "draw_probabilities",
    "draw_trajectories",
    "figure",
    "figure_png",
    "grid",
    "overlay",
    "sequential",
    "shared_limit",
    "write_page",
]
