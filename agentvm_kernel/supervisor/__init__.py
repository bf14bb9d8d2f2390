"""The per-user daemon that alone owns libvirt, its API and its client."""
