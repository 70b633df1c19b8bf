# shellcheck shell=bash
# Sourced by the `run` scripts.

# Where a peer's programs are put.
# shellcheck disable=SC2034
built=${CARGO_TARGET_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)/target}/peers

# need PACKAGE...: Debian's packages, which are missing. Installs them if root runs this, and otherwise says how.
need() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing; on Debian: sudo apt-get install --no-install-recommends $*" >&2
        exit 69 # EX_UNAVAILABLE
    fi
    echo "installing Debian's $*" >&2
    {
        apt-get update || echo "going on with the old lists of packages"
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
    } >&2 </dev/null
}
