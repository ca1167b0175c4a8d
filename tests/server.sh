# Sourced by the scripts beside it: installs PostgreSQL's programs when it may, and starts one throw-away server with the gateway's
# roles. Its socket's directory is in $directory; it has no port, and it is gone with the script that sourced this.
# `missing` may name further Debian packages that the script needs.

newest() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }

[ -n "$(newest)" ] || missing+=(postgresql)
command -v psql >/dev/null 2>&1 || missing+=(postgresql-client)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}"
    else
        echo "$0: install what this needs first: sudo apt-get install -y ${missing[*]}" >&2
        exit 1
    fi
fi

# It is thrown away, so it need not flush; the tests of durability start servers of their own that do.
programs=$(newest)
directory=$(mktemp -d /tmp/toolgate-tests.XXXXXX)
as=()
if [ "$(id -u)" = 0 ]; then
    chown postgres "$directory"
    # Replaces itself by the program, so that the signal at the end reaches the server and not a helper in between.
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
server=
finish() {
    if [ -n "$server" ]; then kill -QUIT "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
    rm -rf "$directory"
}
trap finish EXIT
"${as[@]}" "$programs/initdb" -D "$directory/data" -U superuser --auth=trust --encoding=UTF8 --locale=C >/dev/null
"${as[@]}" "$programs/postgres" -D "$directory/data" -k "$directory" -c listen_addresses= -c fsync=off \
    -c max_connections=300 >"$directory/log" 2>&1 &
server=$!
for _ in $(seq 100); do
    psql -q -h "$directory" -U superuser -d postgres -c 'SELECT 1' >/dev/null 2>&1 && break
    sleep 0.1
done
psql -q -h "$directory" -U superuser -d postgres -v ON_ERROR_STOP=1 \
    -c 'CREATE ROLE toolgate_owner LOGIN CREATEDB CREATEROLE' \
    -c 'CREATE ROLE toolgate_gateway LOGIN' -c 'CREATE ROLE toolgate_auditor LOGIN'
