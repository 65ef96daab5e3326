"""Exported policies: what writes them, and what reads them with NumPy alone."""
