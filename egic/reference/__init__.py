"""Weights of the TensorFlow reference."""
