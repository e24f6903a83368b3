# completion.awk - --help texts to bash completion:
#   { PROGRAM --help; echo "== CMD"; PROGRAM CMD --help; ... } | awk -v program=NAME -f this
# Options are the lines that start with blanks and a dash; "a|b" as an option's value
# is a choice, FMT is one of the formats that --help lists, CACHE and MODE are cache
# modes, anything else a file name.

function add_option(text,    n, part, i, name, value)
{
    sub(/^ */, "", text)
    sub(/  .*/, "", text)               # a second column
    n = split(text, part, /, */)
    value = ""
    for (i = 1; i <= n; i++) {
        if (match(part[i], /[ =\[]/)) {
            value = substr(part[i], RSTART + 1)
        }
    }
    for (i = 1; i <= n; i++) {
        name = part[i]
        sub(/[ =\[].*/, "", name)
        if (name !~ /^--?[a-zA-Z0-9]/ || seen[cmd, name, value]++) {
            continue
        }
        options[cmd] = options[cmd] " " name
        if (value != "") {
            arms[cmd] = arms[cmd] sprintf("        %s) %s ;;\n", cmd "," name, candidates(value, text))
        }
    }
}

function candidates(value, names)
{
    if (value ~ /^[a-z]+(\|[a-z]+)+$/ || value ~ /^FD\|/) {
        sub(/^FD\|/, "", value)
        gsub(/\|/, " ", value)
        return "words='" value "'"
    }
    if (value ~ /FMT$/) {
        return "words=$formats"
    }
    if (value ~ /CACHE$/ || value ~ /CACHE_MODE$/ || value == "MODE" && names ~ /cache/) {
        return "words=$caches"
    }
    if (value == "ALGORITHM") {
        return "words='sha256 sha512 sha3-256 blake2b-256 blake2b-512'"
    }
    if (value ~ /^(SIZE|RATE|N|COUNT|DEPTH|OFFSET|LENGTH|NUMBER|LIST|TEXT|CMD|MODE)$/) {
        return "return"
    }
    return "files=1"
}

BEGIN { cmd = "" }
/^== / { cmd = $2; order[++count] = cmd; next }
/^Image formats:/ { sub(/^Image formats: */, ""); formats = $0; next }
/^  [a-z][a-z]* - / { commands = commands " " $1; next }
/^ +-/ { add_option($0) }
END {
    fn = "_" program
    gsub(/-/, "_", fn)
    printf "# bash completion for %s; made from its --help\n%s()\n{\n", program, fn
    print "    local cur=${COMP_WORDS[COMP_CWORD]} prev= cmd= i words= files="
    printf "    local formats='%s'\n", formats
    print "    local caches='none writeback writethrough directsync unsafe'"
    printf "    local commands='%s'\n", substr(commands, 2)
    print "    COMPREPLY=()"
    print "    (( COMP_CWORD > 0 )) && prev=${COMP_WORDS[COMP_CWORD - 1]}"
    print "    # --option=value comes as three words"
    print "    if [[ $cur == = ]]; then"
    print "        cur="
    print "    elif [[ $prev == = ]]; then"
    print "        prev=${COMP_WORDS[COMP_CWORD - 2]}"
    print "    fi"
    if (commands != "") {
        print "    for (( i = 1; i < COMP_CWORD; i++ )); do"
        print "        [[ \" $commands \" == *\" ${COMP_WORDS[i]} \"* ]] && cmd=${COMP_WORDS[i]} && break"
        print "    done"
    }
    print "    case $cmd,$prev in"
    printf "%s", arms[""]
    for (i = 1; i <= count; i++) {
        printf "%s", arms[order[i]]
    }
    print "    *)"
    print "        case $cmd in"
    for (i = 1; i <= count; i++) {
        printf "            %s) words='%s' ;;\n", order[i], substr(options[order[i]], 2)
    }
    printf "            '') words=\"$commands%s\" ;;\n", options[""]
    print "        esac"
    print commands != "" ? "        [[ $cur != -* && -n $cmd ]] && words= files=1 ;;" \
                         : "        [[ $cur != -* ]] && words= files=1 ;;"
    print "    esac"
    print "    [[ -n $words ]] && mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")"
    print "    [[ -n $files ]] && mapfile -t COMPREPLY < <(compgen -f -- \"$cur\") && compopt -o filenames 2>/dev/null"
    printf "    return 0\n}\ncomplete -F %s %s\n", fn, program
}
