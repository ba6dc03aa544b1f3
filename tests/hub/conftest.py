"""Lets torchvision be imported."""

import operators  # noqa: F401
