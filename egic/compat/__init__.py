"""EGIC with the interfaces of other packages. A package is imported only if its module here is."""
