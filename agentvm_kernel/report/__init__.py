"""The record of an experiment as a document that a reader can check."""
