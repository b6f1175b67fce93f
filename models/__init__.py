"""Weights that ship with Longtake."""
