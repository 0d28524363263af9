"""Models measured through real files."""
