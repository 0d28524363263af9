"""The command `egic`."""
