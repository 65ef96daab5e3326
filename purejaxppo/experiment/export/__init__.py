"""Exported policies: writing them, and a reader that needs NumPy alone."""
