# Turns the finished tree into a file system. mmdebstrap runs this text as its last hook, outside of the tree but inside
# its user namespace, where the files' owners are the right ones. $1 is the tree; $image is a descriptor that the builder
# holds on the image file, because the file's folder cannot be entered from the namespace.
set -eu
echo "stage: writing the root file system"
rm -rf "$1/opt/agentvm/build"
# A bind mount shows the tree without what is mounted in it; mmdebstrap's own files in /tmp and /dev are hidden.
view=$(mktemp -d)
mount --bind "$1" "$view"
mount -t tmpfs -o mode=0755 tmpfs "$view/dev"
mount -t tmpfs -o mode=1777 tmpfs "$view/tmp"
used=$(du --summarize --block-size=1K --one-file-system "$view" | cut -f1)
# A fifth of room, for indirect blocks and the first writes; the guest grows the file system to its disk's size.
size=$((used + used / 5 + 131072))
# No journal: a clone's memory and disk are one snapshot, and no disk outlives its VM.
mke2fs -q -F -t ext4 -L agentvm -b 4096 -m 0 -O ^has_journal -E lazy_itable_init=1 -d "$view" "$image" "${size}k"
umount "$view/dev" "$view/tmp" "$view"
rmdir "$view"
