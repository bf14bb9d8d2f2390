#!/bin/sh
# Finishes the tree; runs inside it as root, after the Debian packages are installed and the files are copied in.
# Everything under /opt/agentvm/build comes from the builder and goes away with it; results for it lie in build/out.
set -eu
build=/opt/agentvm/build
out=$build/out
mkdir -p "$out"
cd "$build"

stage() { echo "stage: $1"; }

stage "unpacking the guest kernel"
mkdir kernel
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C kernel
# Older packages have /lib/modules, newer ones /usr/lib/modules.
for modules in kernel/lib/modules kernel/usr/lib/modules; do
  if [ -d "$modules" ]; then mv "$modules" /usr/lib/modules; fi
done
release=$(ls /usr/lib/modules)
depmod "$release"
cp "kernel/boot/vmlinuz-$release" "$out/vmlinuz"
cp /usr/bin/busybox "$out/busybox"
tar -C "/usr/lib/modules/$release" -cf "$out/modules.tar" .
echo "$release" > "$out/release"

stage "making the user and the Python environment"
useradd --create-home --uid 1000 --shell /bin/bash agent
# Where the user's files are, under the name that programs and documents of agents use.
ln -s home/agent /workspace
python3 -m venv /opt/agentvm/venv
/opt/agentvm/venv/bin/python -m pip install --no-index --find-links wheels --no-cache-dir --disable-pip-version-check \
  --no-warn-script-location --root-user-action ignore --progress-bar off --requirement requirements.txt
chown -R agent:agent /opt/agentvm/venv
# The completer parses the standard library's stubs once and keeps the result in the user's cache: half a minute in an
# emulated guest, a second here.
setpriv --reuid agent --regid agent --init-groups env HOME=/home/agent /opt/agentvm/venv/bin/python -c '
import jedi
[(completion.name, completion.type) for completion in jedi.Interpreter("im", [{}]).complete()]
'
for name in poweroff reboot halt; do ln -sf ../bin/busybox "/usr/sbin/$name"; done
chmod 0440 /etc/sudoers.d/agent

stage "listing what is in the image"
dpkg-query --show --showformat '${Package}\t${Version}\t${Architecture}\n' > "$out/debian.tsv"
for deb in linux-image-*.deb; do
  dpkg-deb --show --showformat '${Package}\t${Version}\t${Architecture}\n' "$deb" >> "$out/debian.tsv"
done
/opt/agentvm/venv/bin/python -m pip list --format json --disable-pip-version-check > "$out/python.json"
python3 -c 'import platform; print(platform.python_version())' > "$out/python-version"

stage "cleaning up"
rm -f /etc/apt/apt.conf.d/99mmdebstrap
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/ldconfig/aux-cache
rm -rf /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/apt /var/log/dpkg.log /var/log/alternatives.log
rm -rf /root/.cache /root/.npm /boot/* /var/tmp/* /run/*
