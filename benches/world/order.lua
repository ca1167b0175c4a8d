-- What wrk sends, and its findings as one line of JSON. Everything is set before the first request, so that wrk
-- writes the same bytes again and again and runs no Lua in between.
function init()
    local file = assert(io.open(os.getenv("BODY_FILE"), "rb"))
    wrk.method = "POST"
    wrk.body = file:read("*a")
    file:close()
    wrk.headers["Content-Type"] = "application/json"
    -- Everybody gets the key, so that all three read requests of one size.
    wrk.headers["Authorization"] = "Bearer " .. os.getenv("AGENT_KEY")
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\n{"requests": %d, "micros": %d, "p50": %d, "p99": %d, "max": %d, "status": %d, '
            .. '"connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
        errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
