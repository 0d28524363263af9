"""EGIC in the interfaces of other packages; none of them is imported unless a module here is."""
