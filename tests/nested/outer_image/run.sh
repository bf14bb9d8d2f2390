# What the outer VM runs, as its first process: makes a host of it, runs the tests there and powers off. The console
# shows pytest's output; the results go to the virtio-serial port `results`.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb

finish() {
  echo "outer: $1"
  sync
  busybox poweroff -f
}

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
# Huge pages make the inner VMs' page tables, which are walked in two dimensions, less deep.
mount -t tmpfs -o mode=1777,size=75%,huge=always tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname outer
modprobe vhost_vsock || finish "no vhost_vsock"
# QEMU emulates AMD's virtualisation extension, which is far faster than emulation inside emulation (see outer.py).
# Polling would only take the CPU from the other VMs. With virtual interrupt flags and virtual loads and stores, which QEMU
# emulates, an inner VM was seen to go on with registers of the outer one, and to hang.
modprobe kvm halt_poll_ns=0
modprobe kvm_amd vgif=0 vls=0 && chmod 0666 /dev/kvm

# The image comes as the user who ran the tests owns it; libvirt's own user has to read it.
images=/var/cache/agentvm/images
mkdir -p "$images/$(sed 's/.*agentvm.image=\([0-9a-f]*\).*/\1/' /proc/cmdline)"
mount -t ext4 -o noatime /dev/vdc "$images"/* || finish "the guest image could not be mounted"
chmod 0755 "$images"/*
chmod 0444 "$images"/*/*

cd /run/project || finish "no project"
# libvirt's Python module is Debian's, the rest is the environment's.
PYTHONPATH=/run/project:/usr/lib/python3/dist-packages PYTHONDONTWRITEBYTECODE=1 AGENTVM_NESTED_INNER=1 \
  /opt/agentvm/venv/bin/python -m pytest tests/nested -o addopts= -v --capture=tee-sys -p no:cacheprovider \
  --junit-xml=/tmp/results.xml
cat /tmp/results.xml > "/dev/$(basename "$(dirname "$(grep -l results /sys/class/virtio-ports/*/name)")")"
finish "done"
