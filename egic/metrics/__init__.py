"""Measures of pictures and of sets of pictures, and the pretrained networks that they use."""
