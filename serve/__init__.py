"""The ranking endpoint."""
