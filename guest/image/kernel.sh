# Fetches the guest kernel's package. mmdebstrap runs this text as a hook outside of the tree, $1, after the packages are
# installed; $kernel is the recipe's package, which depends on the one with the kernel in it.
set -eu
# The guest's apt settings; without them apt would fetch the host's kernel.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$1/opt/agentvm/build"
package=$(apt-cache depends --important "$kernel" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p')
apt-get download "$package"
