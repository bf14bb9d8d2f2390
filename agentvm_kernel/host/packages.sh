#!/bin/sh
# Installs the Debian or Ubuntu packages that AgentVM Kernel needs. Run by the Makefile, before there is a Python
# environment, and by `agentvm setup`.
#
#   packages.sh           install what is missing, as root or through sudo; do nothing where all is there
#   packages.sh --check   list what is missing and exit with 1; change nothing
#
# AGENTVM_TEST_PACKAGES names what the tests need besides, on Debian.
#
# Starts no service: the embedded libvirt driver needs none.
set -eu

QEMU_FLOOR=8.2
RELEASE_FILE=${AGENTVM_OS_RELEASE:-/etc/os-release}
BACKPORTS_FILE=/etc/apt/sources.list.d/agentvm-backports.sources
POLICY=/usr/sbin/policy-rc.d

# The hypervisor; on Debian 12 from backports.
VIRTUAL="qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients libvirt-dev"
# mmdebstrap, uidmap and e2fsprogs build the guest image; the compiler builds the Python bindings of libvirt.
COMMON="ca-certificates e2fsprogs gcc git libc6-dev mmdebstrap pkg-config python3 python3-dev python3-venv uidmap"

fail() {
  printf 'agentvm: %s\n' "$1" >&2
  printf '%s\n' "$2" >&2
  exit 2
}

read_release() {
  command -v dpkg-query > /dev/null && [ -r "$RELEASE_FILE" ] || fail "this is neither Debian nor Ubuntu." \
    "Supported: Debian 12, Debian 13, Ubuntu 24.04. Elsewhere install by hand what matches: $VIRTUAL $COMMON"
  # shellcheck disable=SC1090
  release=$(. "$RELEASE_FILE" && echo "${ID:-} ${VERSION_ID:-}")
  case $release in
    # libvirt-daemon-log has virtlogd where it is a package of its own.
    # Ubuntu has no package of Chromium; its tests in a browser are skipped.
    "debian 12" | "debian 13") VIRTUAL="$VIRTUAL libvirt-daemon-log" COMMON="$COMMON ${AGENTVM_TEST_PACKAGES:-}" ;;
    # libvirt-daemon-system has the user that QEMU runs as.
    "ubuntu 24.04") VIRTUAL="$VIRTUAL libvirt-daemon-system" COMMON="$COMMON debian-archive-keyring" ;;
    *) fail "'$release' is not a supported system." \
      "Supported: Debian 12, Debian 13, Ubuntu 24.04. Elsewhere install by hand what matches: $VIRTUAL $COMMON" ;;
  esac
  architecture=$(dpkg --print-architecture)
  [ "$architecture" = amd64 ] || fail "only amd64 is supported, and this is $architecture." \
    "Use an x86-64 machine with a 64-bit system."
}

list_missing() {
  # dpkg-query fails for names it does not know, and says so on the error channel.
  # shellcheck disable=SC2086
  installed=$(dpkg-query --show --showformat '${db:Status-Status} ${Package} ${Version}\n' $VIRTUAL $COMMON 2> /dev/null) || true
  for package in $VIRTUAL $COMMON; do
    version=$(printf '%s\n' "$installed" | sed -n "s/^installed $package //p" | head -n 1)
    if [ -z "$version" ]; then
      echo "$package"
    elif [ "$package" = qemu-system-x86 ] && dpkg --compare-versions "${version#*:}" lt "$QEMU_FLOOR"; then
      echo "$package"
    fi
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo "$@"
  else
    fail "packages are missing, and installing them needs root." "As root: sh $0"
  fi
}

apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet --assume-yes --no-install-recommends --no-remove "$@" ||
    fail "apt-get ended with an error." "Its messages are above. When it works again: sh $0"
}

# Lines "mirror file:entry" of apt's sources for a release; apt knows both formats, once its lists are there.
sources_of() {
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI) $(SOURCESENTRY)' 'Created-By: Packages' |
    sed -n "s/^$1 main //p"
}

# The keyring that an entry of apt's sources names, else Debian's own.
keyring_of() {
  file=${1%:*}
  number=${1##*:}
  case $file in
    *.sources) key=$(awk -v RS= -v number="$number" 'NR == number' "$file" | sed -n 's/^[Ss]igned-[Bb]y: *//p') ;;
    *) key=$(sed -n "$number s/.*[Ss]igned-[Bb]y=\([^] ]*\).*/\1/p" "$file") ;;
  esac
  case $key in
    /*) echo "$key" ;;
    *) echo /usr/share/keyrings/debian-archive-keyring.gpg ;;
  esac
}

# Debian 12's own QEMU is too old. Its backports lie on the mirror that the host uses already, under the same keys.
enable_backports() {
  [ -z "$(sources_of bookworm-backports)" ] || return 0
  source=$(sources_of bookworm | head -n 1)
  [ -n "$source" ] || fail "apt's sources do not name a mirror of bookworm." \
    "Add Debian 12's mirror and its backports to /etc/apt, then run this again."
  echo "Enabling bookworm-backports in $BACKPORTS_FILE"
  printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: %s\n' \
    "${source%% *}" "$(keyring_of "${source#* }")" | as_root tee "$BACKPORTS_FILE" > /dev/null
  apt update
}

# Packages ask this program whether their services may start.
forbid_services() {
  [ ! -e "$POLICY" ] || return 0
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" > /dev/null
  as_root chmod 0755 "$POLICY"
  trap 'as_root rm -f "$POLICY"' EXIT
  trap 'exit 1' INT TERM HUP
}

# That lasts until the next boot. What the tests need of this package they start by themselves.
disable_services() {
  case " $(echo "$1" | tr '\n' ' ') " in
    *" prometheus "*) as_root update-rc.d prometheus disable ;;
  esac
}

install_missing() {
  echo "Installing packages: $(echo "$1" | tr '\n' ' ')"
  forbid_services
  apt update
  # All of a group are named, so that those already there are upgraded together with the others.
  # shellcheck disable=SC2086
  if [ "$release" = "debian 12" ]; then
    enable_backports
    apt install --target-release bookworm-backports $VIRTUAL
    apt install $COMMON
  else
    apt install $VIRTUAL $COMMON
  fi
  disable_services "$1"
}

read_release
missing=$(list_missing)
case ${1:-} in
  --check)
    [ -z "$missing" ] || { printf '%s\n' "$missing"; exit 1; }
    ;;
  "")
    if [ -z "$missing" ]; then
      echo "All packages are there."
    else
      install_missing "$missing"
      missing=$(list_missing)
      [ -z "$missing" ] || fail "still missing after the installation: $missing" "Look at apt's messages above."
    fi
    ;;
  *) fail "unknown argument: $1" "Usage: packages.sh [--check]" ;;
esac
