#!/bin/sh
# Finishes the outer VM's tree; runs inside it as root. As guest/image/setup.sh, without a user and without what only
# notebooks need.
set -eu
build=/opt/agentvm/build
out=$build/out
mkdir -p "$out"
cd "$build"

stage() { echo "stage: $1"; }

stage "unpacking the kernel"
mkdir kernel
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C kernel
for modules in kernel/lib/modules kernel/usr/lib/modules; do
  if [ -d "$modules" ]; then mv "$modules" /usr/lib/modules; fi
done
release=$(ls /usr/lib/modules)
depmod "$release"
cp "kernel/boot/vmlinuz-$release" "$out/vmlinuz"
cp /usr/bin/busybox "$out/busybox"
tar -C "/usr/lib/modules/$release" -cf "$out/modules.tar" .
echo "$release" > "$out/release"

stage "making the Python environment"
python3 -m venv /opt/agentvm/venv
/opt/agentvm/venv/bin/python -m pip install --no-index --find-links wheels --no-cache-dir --disable-pip-version-check \
  --no-warn-script-location --root-user-action ignore --progress-bar off --requirement requirements.txt

stage "listing what is in the image"
dpkg-query --show --showformat '${Package}\t${Version}\t${Architecture}\n' > "$out/debian.tsv"
/opt/agentvm/venv/bin/python -m pip list --format json --disable-pip-version-check > "$out/python.json"
python3 -c 'import platform; print(platform.python_version())' > "$out/python-version"
# Libvirt examines every emulator that it finds, and each takes seconds here.
rm -f /usr/bin/qemu-system-i386 /usr/bin/qemu-system-x86_64-microvm
rm -f /etc/apt/apt.conf.d/99mmdebstrap
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /boot/* /run/*
