"""Longtake: minutes of coherent video from a prompt, on one GPU or many."""

__version__ = "0.1.0"
