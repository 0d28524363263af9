"""The page of `egic demo`."""
