"""Guest images: from the recipe in ``guest/image`` to a kernel, an initramfs and a root file system."""

from __future__ import annotations

from agentvm_kernel.image.store import Image, ImageStore

__all__ = ["Image", "ImageStore"]
