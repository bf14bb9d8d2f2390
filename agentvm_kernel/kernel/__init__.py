"""The kernel process: a router between Jupyter's clients and the real ipykernel inside the VM."""
