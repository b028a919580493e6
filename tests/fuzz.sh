#!/bin/sh
# Asks the API for everything that its own description allows and forbids (schemathesis), and fails on an answer with a
# status of 5xx, on one that the description does not have, and on a panic in the log.
#
#   make fuzz               50,000 requests and more
#   make fuzz REQUESTS=5000 a short run
#   make fuzz SEED=7        the same requests again
set -eu

requests=${REQUESTS:-50000}
seed=${SEED:-}
[ -n "$seed" ] || seed=$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')
binary=$(realpath "${1:?the binary to ask}")
folder=$(mktemp -d)
# PostgreSQL of root runs as another user.
chmod o+x "$folder"
tools=$PWD/target/fuzz
system=
cleanup() {
    [ -z "$system" ] || { kill -INT "$system" 2>/dev/null || :; wait "$system" 2>/dev/null || :; }
    rm -rf "$folder"
}
trap cleanup EXIT INT TERM

if [ ! -x "$tools/bin/st" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check 'schemathesis==4.32.5'
fi

cd "$folder" # where the tool leaves what it remembers
# Limits on how often one may ask are the matter of other tests.
for limit in LOGIN_USER LOGIN_NAME LOGIN_ADDRESS REGISTER_ADDRESS WRITE_USER WRITE_ADDRESS READ_USER READ_ADDRESS \
    SEARCH_USER SEARCH_ADDRESS EXPORT_USER; do
    export "FEEDMILL_LIMIT_$limit=0"
done
"$binary" up --data "$folder/data" --listen 127.0.0.1:0 >"$folder/out" 2>"$folder/log" &
system=$!
tries=0
until url=$(sed -n 's/.*\(http:\/\/[0-9.:]*\).*/\1/p' "$folder/out" | head -n 1) && [ -n "$url" ] &&
    curl -sf "$url/ready" >/dev/null; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ] || ! kill -0 "$system" 2>/dev/null; then
        cat "$folder/out" "$folder/log" >&2
        echo "make fuzz: the system did not become ready" >&2
        exit 1
    fi
    sleep 0.1
done

# How often it answered with which 5xx. That it was not ready when it was asked above is among them.
failures() {
    curl -sf "$url/metrics" | grep '^feedmill_http_request_seconds_count{.*status="5' || :
}
unready=$(failures)

# Makes an account of this name.
register() {
    curl -sf -o /dev/null "$url/api/auth/register" -H 'Content-Type: application/json' \
        -d "{\"username\":\"$1\",\"email\":\"$1@example.org\",\"password\":\"correct horse battery\",\"displayName\":\"$1\"}"
}

signed_in() {
    curl -sf "$url/api/auth/login" -H 'Content-Type: application/json' \
        -d "{\"username\":\"$1\",\"password\":\"correct horse battery\"}" | sed -n 's/.*"token":"\([^"]*\)".*/\1/p'
}

# Somebody to be found, followed and denied.
register bea || { echo "make fuzz: bea could not register" >&2; exit 1; }

asked() {
    curl -sf "$url/metrics" | sed -n 's/^feedmill_http_request_seconds_count{[^}]*} \([0-9]*\).*/\1/p' | awk '{n += $1} END {print n + 0}'
}

# Signed in, without what would end the session; then as nobody. One worker: Python 3.11 cannot always parse in two threads
# ("AST constructor recursion depth mismatch").
round=0
while [ "$(asked)" -lt "$requests" ]; do
    for as in ada nobody; do
        set --
        if [ $as = ada ]; then
            # A token holds for minutes only, and an account may be renamed: each round has its own, or nothing would be tested.
            register "ada$round" || { echo "make fuzz: ada$round could not register" >&2; exit 1; }
            token=$(signed_in "ada$round")
            [ -n "$token" ] || { echo "make fuzz: ada$round could not sign in" >&2; exit 1; }
            set -- --header "Authorization: Bearer $token" --exclude-path /api/auth/logout
        fi
        "$tools/bin/st" run "$url/openapi.json" "$@" --seed $((seed + round)) --workers 1 --max-examples 200 \
            --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
            --exclude-path /api/stream --request-timeout 20 --no-color || {
            echo "make fuzz: something was found with SEED=$((seed + round)), as $as" >&2
            exit 1
        }
    done
    round=$((round + 1))
done

if grep -n 'panicked' "$folder/log"; then
    echo "make fuzz: the log tells of a panic (SEED=$seed)" >&2
    exit 1
fi
failed=$(failures)
[ "$failed" = "$unready" ] || {
    grep -n 'ERROR\|WARN' "$folder/log" | tail -n 20 >&2
    echo "make fuzz: there were answers with 5xx (SEED=$seed):" "$failed" >&2
    exit 1
}
"$binary" verify --data "$folder/data"
echo "$(asked) requests, no 5xx, no answer that the description does not have, no panic (SEED=$seed)"
