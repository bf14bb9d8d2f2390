"""Virtual machines: two primitives, ``clone(snapshot)`` and ``snapshot(vm)``, over QEMU through libvirt."""

import os

# Libvirt reads this when it is loaded. Its warnings that a domain is "tainted" by our arguments would fill the log.
os.environ.setdefault("LIBVIRT_DEBUG", "error")
