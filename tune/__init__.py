"""Sweeps over students."""
