"""What differs between two snapshots, as their guests say: files, packages, processes, variables."""
