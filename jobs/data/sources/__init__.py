"""Readers of each kind of data that `--data` and `jobs.prepare` take."""
