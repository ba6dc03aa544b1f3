"""Plain arrays in, pictures out: colours, overlays, figures and the HTML page. Knows no model and no torch."""
