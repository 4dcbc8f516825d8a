"""Builds runs from their configurations: makes and checks the parts of a run, and prepares the runs of a fleet."""
