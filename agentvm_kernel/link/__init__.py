"""The framed, multiplexed connection between host and guest. Standard library only: the guest runs this code too."""
