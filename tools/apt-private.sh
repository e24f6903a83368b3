# apt-private.sh - sourced: Debian packages fetched and unpacked under build/,
# without touching the machine's apt sources, state or installed packages.
#
# An apt of its own lives in build/apt: the machine's mirrors and proxies, the
# suites of Debian 12 plus bookworm-backports, the machine's Debian keyring, and
# a copy of the machine's dpkg status (so that only what is missing is fetched).
# Needs no root.  Use:
#   . tools/apt-private.sh
#   apt_private_init           make build/apt and fetch the lists (once a day)
#   apt_private_get ...        apt-get in there
#   apt_private_cache ...      apt-cache in there

apt_private_top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
apt_private_dir=$apt_private_top/build/apt

apt_private_fail()
{
    echo "$(basename "$0"): $*" >&2
    exit 1
}

apt_private_get()   { APT_CONFIG=$apt_private_dir/apt.conf apt-get "$@"; }
apt_private_cache() { APT_CONFIG=$apt_private_dir/apt.conf apt-cache "$@"; }

# "BASE SUITE" of each Debian 12 suite the machine itself uses.
apt_private_mirrors()
{
    apt-get update --print-uris -o Debug::NoLocking=1 2>/dev/null |
        sed -nE "s,^'([^']*)/dists/(bookworm[^/]*)/main/binary-$1/Packages.*,\1 \2,p" | sort -u
}

apt_private_config()
{
    local d=$apt_private_dir arch mirrors base suite
    arch=$(dpkg --print-architecture)
    mirrors=$(apt_private_mirrors "$arch")
    [ -n "$mirrors" ] ||
        apt_private_fail "apt knows no mirror with the suite bookworm (Debian 12): see /etc/apt/sources.list"
    mkdir -p "$d/state/lists/partial" "$d/cache/archives/partial" "$d/parts"
    cp /var/lib/dpkg/status "$d/state/status"
    while read -r base suite; do
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: %s\n' \
               "$base" "$suite" "$arch"
        printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n'
    done < <(echo "$mirrors"; echo "$mirrors" | sed -n 's/ bookworm$/ bookworm-backports/p') \
        > "$d/debian.sources.new"
    mv "$d/debian.sources.new" "$d/parts/debian.sources"
    {
        # How to reach the mirror (proxies, certificates, retries) is the machine's business.
        apt-config dump | grep -E '^Acquire::(http|https|ftp|Retries|ForceIPv|Check-|Max-)' || true
        cat <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$d/parts";
Dir::State "$d/state";
Dir::State::status "$d/state/status";
Dir::Cache "$d/cache";
Dir::Log "$d";
Acquire::Languages "none";
APT::Sandbox::User "";
APT::Install-Recommends "false";
CONF
    } > "$d/apt.conf"
}

apt_private_init()
{
    local d=$apt_private_dir
    command -v apt-get >/dev/null ||
        apt_private_fail "apt-get not found: this works on Debian 12 only"
    apt_private_config
    if [ -z "$(find "$d/updated" -mtime -1 2>/dev/null)" ]; then
        # A third party's suite called bookworm fails here and does no harm.
        apt_private_get -q update >"$d/update.log" 2>&1 || true
        apt_private_cache policy | grep -q 'n=bookworm-backports' || {
            cat "$d/update.log" >&2
            apt_private_fail "cannot fetch the lists of bookworm-backports"
        }
        touch "$d/updated"
    fi
}
