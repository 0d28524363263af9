"""Latents to bytes and back: entropy coding, frequency tables, the .egic file."""
