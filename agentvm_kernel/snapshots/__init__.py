"""The snapshot store: a tree of snapshots per notebook, on disk, complete or absent."""
