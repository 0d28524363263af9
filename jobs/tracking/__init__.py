"""MLflow: runs, curves, registered models."""
