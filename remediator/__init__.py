"""Remediator: carries out incident runbooks by itself, carefully."""

__version__ = "0.1.0"
