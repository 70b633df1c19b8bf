# A client of `tenure serve` for shell scripts on Linux, with curl. To be sourced:
#
#   . ./tenure.sh
#   tenure_campaign billing || exit          # waits until this script is elected
#   while work_is_left; do
#       tenure_renew && tenure_check || exit # before every step
#       do_a_step "$TENURE_TOKEN"            # send the token with every write
#   done
#   tenure_resign
#
# The contract is docs/guide/sidecar.md. Nothing renews in the background: a step that takes longer than the validity, the
# TTL or less, outlasts it. `tenure_left` prints the milliseconds that are left. To stop a program in time, use `tenure run`.
#
# TENURE_SIDECAR: where the sidecar listens, http://127.0.0.1:8377 (the default) or unix:/path.
# TENURE_TOKEN_FILE: the file with its bearer token.

TENURE_TOKEN= TENURE_UNTIL=0 _tenure_election= _tenure_lease=

# Milliseconds on a clock that runs while the machine is suspended, rounded down to 10.
_tenure_now() {
    read -r _tenure_uptime _ </proc/uptime || return 1
    # 12.34 -> 1234, without the leading zeros that would make it octal
    _tenure_uptime=$(echo "$_tenure_uptime" | sed 's/\.//; s/^0*//')
    echo $((${_tenure_uptime:-0} * 10))
}

# _tenure_request METHOD PATH SECONDS [BODY]: prints the status on the first line, and then the answer.
_tenure_request() {
    _tenure_body=${4-} _tenure_socket= _tenure_base=${TENURE_SIDECAR:-http://127.0.0.1:8377}
    case $_tenure_base in
    unix:*) _tenure_socket=${_tenure_base#unix:} _tenure_base=http://localhost ;;
    esac
    set -- --silent --show-error --noproxy '*' --request "$1" --max-time "$3" --write-out '\n%{http_code}' \
        ${_tenure_socket:+--unix-socket "$_tenure_socket"} "${_tenure_base%/}/v1/elections/$2"
    # Secrets go through the standard input: the arguments of a process can be read by others.
    # Not `echo`, which changes backslashes in some shells.
    {
        if test -n "$_tenure_lease"; then printf 'header = "Tenure-Lease: %s"\n' "$_tenure_lease"; fi
        if test -n "${TENURE_TOKEN_FILE-}"; then
            printf 'header = "Authorization: Bearer %s"\n' "$(sed 's/[\\"]/\\&/g' "$TENURE_TOKEN_FILE")"
        fi
        if test -n "$_tenure_body"; then
            printf 'header = "Content-Type: application/json"\ndata = "%s"\n' \
                "$(printf '%s\n' "$_tenure_body" | sed 's/[\\"]/\\&/g')"
        fi
    } | curl --config - "$@" | sed -n '$!H; ${G; s/\n\n/\n/; p;}'
}

# _tenure_field NAME ANSWER: a number, a word or true and false, of a flat JSON object.
_tenure_field() {
    echo "$2" | sed -n "s/.*\"$1\":\"\{0,1\}\([A-Za-z0-9_-]*\).*/\1/p"
}

# _tenure_granted SENT ANSWER: keeps until when it is valid, from before the request was sent.
_tenure_granted() {
    TENURE_TOKEN=$(_tenure_field token "$2")
    # The clock is read up to 10 ms too low.
    TENURE_UNTIL=$(($1 + $(_tenure_field valid_for_ms "$2") - 10))
}

# Waits until this script is elected. Fails when the sidecar refuses.
tenure_campaign() {
    _tenure_election=$1 _tenure_lease= TENURE_UNTIL=0
    _tenure_nonce=
    while :; do
        # The same nonce for every retry.
        test -n "$_tenure_nonce" || _tenure_nonce=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
        _tenure_sent=$(_tenure_now) || return 1
        # Its lease is not sent: the nonce finds it, also when the answer was lost.
        _tenure_lease=
        _tenure_answer=$(_tenure_request POST "$1/campaign" 15 "{\"nonce\":\"$_tenure_nonce\",\"wait_ms\":5000}")
        _tenure_lease=$(_tenure_field lease "$_tenure_answer")
        case $_tenure_answer in
        200*)
            _tenure_granted "$_tenure_sent" "$_tenure_answer"
            # After a long wait nothing is left of a validity that counts from before the request.
            tenure_check || _tenure_renew
            return
            ;;
        202*) ;;
        # The lease was over before its answer arrived.
        410*) _tenure_nonce= ;;
        429* | 503* | 000*) sleep 1 ;;
        *)
            echo "tenure: $_tenure_answer" >&2
            return 1
            ;;
        esac
    done
}

# Renews. Fails when this script must not consider itself leader any more.
tenure_renew() {
    # What has run out is never valid again.
    tenure_check && _tenure_renew
}

_tenure_renew() {
    _tenure_sent=$(_tenure_now) || return 1
    _tenure_answer=$(_tenure_request POST "$_tenure_election/renew" 2)
    case $_tenure_answer in
    200*) _tenure_granted "$_tenure_sent" "$_tenure_answer" ;;
    # No answer proves nothing: what was granted counts.
    429* | 000*) tenure_check ;;
    *)
        TENURE_UNTIL=0
        echo "tenure: $_tenure_answer" >&2
        return 1
        ;;
    esac
}

# Prints the milliseconds for which this script may consider itself leader.
tenure_left() {
    _tenure_left=$((TENURE_UNTIL - $(_tenure_now)))
    if test "$_tenure_left" -gt 0; then echo "$_tenure_left"; else echo 0; fi
}

# Succeeds while this script may consider itself leader. Sends no request.
tenure_check() {
    test "$(_tenure_now)" -lt "$TENURE_UNTIL"
}

# Resigns. The work must have stopped.
tenure_resign() {
    TENURE_UNTIL=0
    _tenure_answer=$(_tenure_request DELETE "$_tenure_election/campaign" 10)
    case $_tenure_answer in 200*) ;; *) return 1 ;; esac
}
