"""The output firewall: what the guest says is checked and cleaned here before any browser sees it."""
