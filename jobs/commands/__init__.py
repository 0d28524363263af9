"""What command lines do besides training: one stage, status, dry run."""
