"""What can stand in the audit log: a model for each event."""
