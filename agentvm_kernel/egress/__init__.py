"""What VMs send out: decided by name, carried by the gateway, written down."""
