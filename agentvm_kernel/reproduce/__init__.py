"""Runs a notebook again as it was run, in a fresh VM, and compares what it shows with what it showed."""
