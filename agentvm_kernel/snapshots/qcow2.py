"""A strict look at the header of a disk layer that comes from somebody else.

Only the header is judged: what could make a program on the host open another file. Its tables are read by QEMU alone,
in its sandbox. The format is described in QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import struct
from pathlib import Path

from agentvm_kernel.errors import SnapshotError

# Magic, version, backing file's offset and length, cluster bits, size, encryption, L1 entries, L1 table, refcount table
# and its clusters, number of snapshots and their offset, incompatible, compatible and autoclear features, refcount
# order, header length.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")
_END, _BACKING_FORMAT, _FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857
_LONGEST_HEADER = 4096
_NO_BACKING = bytes(12)
_BACKING_AT = 8


def isolate_layer(path: Path, size: int) -> None:
    """Check a layer's header, and remove the name of a backing file from it.

    QEMU is always told what lies below a layer; nothing else may get the idea to look where its header points.

    Args:
        path: The layer.
        size: Bytes that the guest's disk has.

    Raises:
        SnapshotError: it is no qcow2 layer of that size without references to other files.
    """
    with path.open("r+b") as file:
        start = file.read(_LONGEST_HEADER)
        reason = _examine(start, size)
        if reason:
            raise SnapshotError(f"The disk layer {path.name} is not acceptable: {reason}.")
        file.seek(_BACKING_AT)
        file.write(_NO_BACKING)


def _examine(start: bytes, size: int) -> str:
    """Return what is wrong with a header; empty if nothing is."""
    if len(start) < _HEADER.size:
        return "it is cut off"
    (
        magic, version, _, _, cluster_bits, found_size, encryption, _, _, _, _, snapshots, _, incompatible, compatible,
        autoclear, refcount_order, length,
    ) = _HEADER.unpack_from(start)  # fmt: skip
    wrong = {
        "it is no qcow2 file of version 3": magic != b"QFI\xfb" or version != 3,
        "it has unusual clusters": not 12 <= cluster_bits <= 21 or refcount_order > 6,
        f"the guest's disk has {size} bytes, it has {found_size}": found_size != size,
        "it is encrypted": encryption != 0,
        "it has internal snapshots": snapshots != 0,
        # Among them: an external data file, and the marks of a layer that is damaged or was not closed.
        "it needs features that layers do not have": incompatible != 0 or compatible not in {0, 1} or autoclear != 0,
        "its header is too long or too short": not _HEADER.size <= length <= 512 or length % 8 != 0,
    }
    return next((reason for reason, is_wrong in wrong.items() if is_wrong), "") or _examine_extensions(start, length)


def _examine_extensions(start: bytes, offset: int) -> str:
    while offset + _EXTENSION.size <= len(start):
        kind, length = _EXTENSION.unpack_from(start, offset)
        if kind == _END:
            return ""
        if kind not in {_BACKING_FORMAT, _FEATURE_NAMES}:
            return f"it has an extension of the unknown kind {kind:#x}"
        offset += _EXTENSION.size + (length + 7) // 8 * 8
    return "its header does not end"
