"""Checkpoints: a small whole one, and many that are hostile or damaged."""
