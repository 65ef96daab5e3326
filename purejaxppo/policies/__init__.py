"""Policies: networks that map observations to a distribution over actions and a value."""
