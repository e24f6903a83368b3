# man.awk - a program's --help text to a man page:
#   PROGRAM --help | awk -v page=NAME -v version=V [-v summary=TEXT] -f tools/man.awk
# --help is the one source.  What it has to look like: "Summary.  Usage:" or "Usage: ..."
# first, an empty line after the usage; options as "  -x, --long ARG" with their text
# indented below by 5, or in two columns (kept as they are); "Words:" alone on a line
# starts a section; what begins in the first column is running text.

function esc(s)
{
    gsub(/\\/, "\\e", s)
    gsub(/-/, "\\-", s)
    if (s ~ /^[.']/) {
        s = "\\&" s
    }
    return s
}

function verbatim(on)
{
    if (on != in_verbatim) {
        print on ? ".PP\n.nf" : ".fi"
        in_verbatim = on
    }
}

function head()
{
    if (!summary) {
        summary = "Platter"
    }
    printf ".TH %s 1 \"\" \"Platter %s\" \"Platter\"\n", toupper(esc(page)), version
    printf ".SH NAME\n%s \\- %s\n.SH SYNOPSIS\n.nf\n", esc(page), esc(summary)
}

function section(title)
{
    verbatim(0)
    printf ".SH %s\n", toupper(esc(title))
    par = 0
}

# The text that explains a tag, or goes on explaining it.
function body(s)
{
    print esc(s)
}

NR == 1 {
    usage = 1
    if (sub(/\.  Usage:$/, "")) {
        if (!summary) {
            summary = tolower(substr($0, 1, 1)) substr($0, 2)
        }
        head()
    } else if (sub(/^Usage: /, "")) {
        head()
        print esc($0)
    } else {
        first = $0                      # a title line before "... Usage:"
    }
    next
}
NR == 2 && first != "" {
    sub(/\.  Usage:$/, "")
    head()
    next
}
usage && /^$/ {
    if (shown_usage || first == "" && NR > 2) {
        print ".fi"
        usage = 0
    }
    next
}
usage && /^[^ ]/ {                      # text right under "Usage: ..."
    print ".fi"
    usage = 0
    section("DESCRIPTION")
    print esc($0)
    next
}
usage && /^  -/ {                       # or its options
    print ".fi"
    usage = 0
    section("OPTIONS")
}
usage {
    sub(/^  /, "")
    print esc($0)
    shown_usage = 1
    next
}
/^[A-Z][A-Za-z ]*:$/ {
    sub(/:$/, "")
    section($0 == "Arguments" ? "OPTIONS" : $0)
    next
}
/^$/ {
    verbatim(0)
    par = 1
    next
}
/^     [^ ]/ && !in_verbatim && in_tag {
    sub(/^ */, "")
    body($0)
    next
}
/^  [a-z][a-z]* - / {                   # a command in a list of them
    verbatim(0)
    name = $1
    sub(/^  [a-z]* - /, "")
    printf ".TP\n.BR %s\\-%s (1)\n%s\n", esc(page), name, esc($0)
    next
}
/^  +[^ ].*[^ ]  +[^ ]/ || /^  [^ ]  +[^ ]/ || /^[a-z].*  -- / || in_verbatim && /^ / { # columns
    if (!in_tag || !/^     [^ ]/) {
        in_tag = 0
        verbatim(1)
        print esc($0)
        next
    }
}
/^  [^ ]/ {
    verbatim(0)
    sub(/^ */, "")
    printf ".TP\n.B %s\n", esc($0)
    in_tag = 1
    next
}
{
    if (in_tag || par || in_verbatim) {
        verbatim(0)
        print ".PP"
    }
    in_tag = par = 0
    print esc($0)
}
END {
    verbatim(0)
    print ".SH SEE ALSO"
    if (page == "platter-img" || page !~ /^platter-img/) {
        print ".BR platter\\-img (1),\n.BR platter\\-run (1),\n.BR platter\\-io (1)"
    } else {
        print ".BR platter\\-img (1)"
    }
}
