"""Scripts over all stages."""
