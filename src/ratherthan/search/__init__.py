"""WHAT would have to change, and what is enough: searches for altered images."""
