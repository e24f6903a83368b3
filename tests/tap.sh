# tap.sh - TAP for tests in bash; sourced.

tap_n=0
tap_failed=0
tap_shows=()                            # files, the ends of which say why ok() found something wrong

# ok STATUS NAME: of a command that has run; returns that status.
ok()
{
    local rc=$1
    shift
    tap_n=$((tap_n + 1))
    if [ "$rc" = 0 ]; then
        echo "ok $tap_n - $*"
    else
        tap_failed=$((tap_failed + 1))
        echo "not ok $tap_n - $*"
        [ ${#tap_shows[@]} = 0 ] || tail -q -n 30 -- "${tap_shows[@]}" 2>/dev/null | sed 's/^/# /'
    fi
    return "$rc"
}

# tap_ok NAME COMMAND...: passes if the command succeeds; its output when it does not.
tap_ok()
{
    local name=$1 out rc
    shift
    out=$("$@" 2>&1)
    rc=$?
    ok "$rc" "$name" || printf '%s\n' "$out" | tail -25 | sed 's/^/# /'
    return 0
}

tap_skip() { ok 0 "$1 # SKIP $2"; }

tap_end()
{
    echo "1..$tap_n"
    [ "$tap_failed" = 0 ]
}
