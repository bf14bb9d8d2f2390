"""A Jupyter kernel that runs every cell in an isolated virtual machine."""

__version__ = "0.1.0"
