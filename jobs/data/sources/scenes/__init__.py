"""Drawn scenes with labels: data for trying and testing."""
