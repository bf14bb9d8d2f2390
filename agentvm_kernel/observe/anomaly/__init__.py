"""Finds what is unusual in a VM, from what the host measures of it."""
