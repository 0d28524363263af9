"""Ray: start or join a cluster, what fits on it, how it ends."""
