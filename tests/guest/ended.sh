# ended.sh - how a guest ended, as a part of a test's name: a name is all that is left of a
# failure in a summary.  Sourced.

# ended STATUS WANT LOG [CONSOLE]: nothing if STATUS is WANT; else the status, what platter-run
# or the outer VM said last, and the console's last line.
ended()
{
    local said last=
    [ "$1" != "$2" ] || return 0
    said=$(grep -ahE '^(platter-run|outer-vm): ' "$3" 2>/dev/null | tail -n 6 | cut -c1-200 | tr '\n' ';')
    [ $# -lt 4 ] || last=$(tail -n 1 "$4" 2>/dev/null | tr -cd '[:print:]' | cut -c1-100)
    echo " (status ${1:-missing}; $said${last:+ console: $last})"
}
