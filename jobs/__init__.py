"""The training pipeline: what a user runs and edits lies here, its parts in the folders."""
