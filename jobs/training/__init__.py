"""A stage: its key, its run on Ray Train, the loop of its workers, its checkpoints."""
