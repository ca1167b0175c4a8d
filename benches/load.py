"""The measuring half of benches/load, which sees to it that everything needed is there.

One POST of about 300 bytes goes straight to an API, through nginx and through Toolgate, in turns, so that whatever
else the machine does falls on all three alike. Figures are medians over the rounds; ratios are taken within each
round before their median is. A run fails rather than report figures of a gateway that refused, erred or did not record.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import platform
import resource
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

WORLD = pathlib.Path(__file__).resolve().parent / "world"
TARGETS = ("direct", "nginx", "toolgate")
TICKS = os.sysconf("SC_CLK_TCK")
BODY = WORLD / "order.json"


class Failed(Exception):
    """The run is worth nothing; the text says why."""


# Processes and their CPU time.


class Stat:
    """The parent and CPU seconds of a process; `reaped` is what its ended children had used."""

    def __init__(self, pid):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.parent = int(fields[1])
        user, system, children_user, children_system = (int(field) / TICKS for field in fields[11:15])
        self.own = user + system
        self.reaped = children_user + children_system


def processes():
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry)] = Stat(entry)
    return found


def below(root, found):
    """The processes that `root` started, and those that they did."""
    children = [pid for pid, stat in found.items() if stat.parent == root]
    return children + [pid for child in children for pid in below(child, found)]


class Cpu:
    """CPU seconds used so far by each part, and by the whole machine."""

    def __init__(self, world):
        found = processes()
        own = lambda pid: found[pid].own if pid in found else 0.0
        # A process that ended is in its parent's count, so that nothing gets lost between two readings.
        whole = lambda pids: sum(found[pid].own + found[pid].reaped for pid in pids if pid in found)
        self.upstream = whole([world.upstream.pid, *below(world.upstream.pid, found)])
        self.nginx = whole([world.nginx.pid, *below(world.nginx.pid, found)])
        # The gateway's own only: its children are PostgreSQL.
        self.toolgate = own(world.toolgate.pid)
        self.postgresql = whole(below(world.toolgate.pid, found))
        wrk = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wrk = wrk.ru_utime + wrk.ru_stime
        fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _idle, _waiting, irq, softirq, steal = fields
        self.machine = (user + nice + system + irq + softirq + steal) / TICKS
        self.at = time.monotonic()

    def ours(self):
        return self.upstream + self.nginx + self.toolgate + self.postgresql + self.wrk


def hold(pid, core):
    """Moves every thread of a process to one core."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})


def memory(pid):
    """Resident memory of a process in bytes: now, and at most so far."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
    return tuple(int(sizes[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


# The world that is measured.


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class World:
    """The API, nginx and Toolgate, running. Everything lives in one temporary directory and ends with `close`."""

    def __init__(self, binary):
        self.binary = binary
        self.ending = contextlib.ExitStack()
        cores = sorted(os.sched_getaffinity(0))
        # With one core there is nothing to keep apart.
        self.core, self.other_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="toolgate-load."))
        self.ending.callback(shutil.rmtree, self.directory, ignore_errors=True)
        # Started by root, PostgreSQL and nginx run as users of their own, who must get in.
        self.directory.chmod(0o711)
        api, self.nginx_port = free_port(), free_port()
        answer = (WORLD / "answer.json").read_text()
        self.upstream = self.start_nginx("upstream", self.other_core, api, {"ANSWER": answer})
        self.nginx = self.start_nginx("proxy", self.core, self.nginx_port, {"API_PORT": str(api)})
        self.start_toolgate(api)
        self.urls = {
            "direct": f"http://127.0.0.1:{api}/orders",
            "nginx": f"http://127.0.0.1:{self.nginx_port}/orders",
            "toolgate": f"http://127.0.0.1:{self.toolgate_port}/shop/orders",
        }
        self.key = self.make_key()
        # Calls that were answered, and those that may have been cut off when wrk stopped.
        self.answered = self.first_call()
        self.cut_off = 0

    def run(self, command, core, name, **more):
        """Starts a program whose last words are kept for the case that something goes wrong."""
        log = open(self.directory / f"{name}.log", "w")
        self.ending.callback(log.close)
        before = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=before, **more)
        self.ending.callback(end, process)
        return process

    def last_words(self, name):
        lines = (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-8:])

    def start_nginx(self, name, core, port, words):
        prefix = self.directory / name
        prefix.mkdir()
        prefix.chmod(0o711)
        text = (WORLD / f"{name}.conf").read_text().replace("@PORT@", str(port))
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        (prefix / "nginx.conf").write_text(text)
        command = ["nginx", "-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", "stderr"]
        process = self.run(command, core, name)
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return process
            if process.poll() is not None or time.monotonic() > until:
                raise Failed(f"nginx ({name}) did not start:\n{self.last_words(name)}")
            time.sleep(0.02)

    def start_toolgate(self, api):
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "TOOLGATE_HOME": str(self.directory / "home"),
            "TOOLGATE_MASTER_SECRET": secrets.token_hex(32),
            "UPSTREAM_URL": f"http://127.0.0.1:{api}",
            "TOOLGATE_LOG": "info",
        }
        command = [self.binary, "serve", "--config", str(WORLD / "toolgate.yaml")]
        self.toolgate = self.run(command, self.core, "toolgate", env=self.environment)
        self.toolgate_port = self.wait_for_toolgate()
        if self.core is None:
            return
        # PostgreSQL inherited the gateway's core. The first process first: the others come from it.
        for _ in range(2):
            for pid in below(self.toolgate.pid, processes()):
                hold(pid, self.other_core)

    def wait_for_toolgate(self):
        until = time.monotonic() + 60
        while self.toolgate.poll() is None and time.monotonic() < until:
            for line in (self.directory / "toolgate.log").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if said.get("message") == "serving":
                        return int(said["agents"].rpartition(":")[2])
            time.sleep(0.05)
        raise Failed(f"toolgate did not start:\n{self.last_words('toolgate')}")

    def ask(self, *arguments):
        """What another toolgate command says."""
        done = subprocess.run([self.binary, *arguments], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"toolgate {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def query(self, sql):
        rows = self.ask("psql", "--home", self.environment["TOOLGATE_HOME"], "--", "-AtX", "-F", "|", "-c", sql)
        return [row.split("|") for row in rows.splitlines()]

    def make_key(self):
        return self.ask("keys", "create", "--agent", "order-bot", "--config", str(WORLD / "toolgate.yaml"))

    def first_call(self):
        """Waits until the new key opens the gateway: one call that passes. Says how many passed."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        until = time.monotonic() + 10
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.toolgate_port, timeout=10)
            connection.request("POST", "/shop/orders", BODY.read_bytes(), headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            connection.close()
            if answer.status == 200:
                return 1
            if answer.status != 401 or time.monotonic() > until:
                raise Failed(f"the first call got {answer.status}: {text}")
            time.sleep(0.1)

    def drive(self, target, connections, seconds):
        """One run of wrk: what it found, with the CPU time that it took of each part."""
        before = Cpu(self)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(WORLD / "order.lua"), self.urls[target]]
        environment = {**os.environ, "BODY_FILE": str(BODY), "AGENT_KEY": self.key}
        hold_it = (lambda: os.sched_setaffinity(0, {self.other_core})) if self.core is not None else None
        done = subprocess.run(command, env=environment, preexec_fn=hold_it, capture_output=True, text=True)
        after = Cpu(self)
        if done.returncode != 0:
            raise Failed(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        wrong = {name: found[name] for name in ("status", "connect", "read", "write", "timeout") if found[name]}
        if wrong or not found["requests"]:
            what = f"{target} with {connections} connections: {found['requests']} answers, errors {wrong}"
            raise Failed(f"{what}\n{self.last_words('toolgate')}")
        if target == "toolgate":
            self.answered += found["requests"]
            self.cut_off += connections
        per_request = lambda part: (getattr(after, part) - getattr(before, part)) * 1e6 / found["requests"]
        ours, machine = after.ours() - before.ours(), after.machine - before.machine
        return {
            "requests": found["requests"],
            "requests_per_second": found["requests"] * 1e6 / found["micros"],
            "p50_micros": found["p50"],
            "p99_micros": found["p99"],
            "max_micros": found["max"],
            "proxy_cpu_micros": None if target == "direct" else per_request(target),
            "postgresql_cpu_micros": per_request("postgresql") if target == "toolgate" else None,
            "cores_used_by_others": max(0.0, machine - ours) / (after.at - before.at),
        }

    def flush(self):
        """The disk's flush: the median of some writes of one page, in microseconds."""
        taken = []
        with open(self.directory / "flush", "wb", buffering=0) as file:
            for _ in range(50):
                file.write(bytes(8192))
                begun = time.perf_counter()
                os.fdatasync(file.fileno())
                taken.append((time.perf_counter() - begun) * 1e6)
        return statistics.median(taken)

    def close(self):
        self.ending.close()


def end(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# The run.


def measure(world, rounds, levels, seconds):
    """`runs[connections][target]` is a list with one finding a round; beside it the disk's flush in each round."""
    for target in TARGETS:
        world.drive(target, 16, 1)  # caches, connections, PostgreSQL's plan: not counted
    runs = {level: {target: [] for target in TARGETS} for level in levels}
    flushes = []
    for number in range(1, rounds + 1):
        flushes.append(world.flush())
        for level in levels:
            for target in TARGETS:
                tell(f"round {number} of {rounds}: {target}, {level} connections")
                runs[level][target].append(world.drive(target, level, seconds))
    tell("")
    return runs, flushes


def tell(text):
    """Where it stands, on a terminal, in place of what was said before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def summary(runs):
    """One row for each number of connections and target."""
    rows = []
    for level, by_target in runs.items():
        for target in TARGETS:
            found = by_target[target]
            row = {"connections": level, "target": target}
            for name in found[0]:
                if name != "requests" and found[0][name] is not None:
                    row[name] = statistics.median(one[name] for one in found)
            for other in TARGETS[: TARGETS.index(target)]:
                for name in ("requests_per_second", "p50_micros"):
                    pairs = zip(found, by_target[other])
                    row[f"{name}_to_{other}"] = statistics.median(one[name] / base[name] for one, base in pairs)
            rows.append(row)
    return rows


def check_records(world):
    """Holds the records against what wrk saw, and says what was found."""
    sql = """SELECT coalesce(outcome, 'none'), coalesce(status, 0), count(*) FROM audit.calls
             WHERE tool = 'shop.orders.create' GROUP BY 1, 2"""
    for _ in range(10):
        time.sleep(0.5)
        rows = {(outcome, int(status)): int(count) for outcome, status, count in world.query(sql)}
        if ("none", 0) not in rows:
            break
    recorded = rows.pop(("completed", 200), 0)
    if rows:
        raise Failed(f"calls that did not end with the API's 200: {rows}")
    if not world.answered <= recorded <= world.answered + world.cut_off:
        raise Failed(
            f"{world.answered} calls were answered and at most {world.cut_off} cut off, but {recorded} are recorded"
        )
    return {"answered": world.answered, "recorded": recorded, "possibly_cut_off": world.cut_off}


def about(world):
    """What the figures depend on."""
    model = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
    settings = ", ".join(f"current_setting('{name}')" for name in names)
    postgresql = dict(zip(names, world.query(f"SELECT {settings}")[0]))
    if postgresql["fsync"] != "on" or postgresql["synchronous_commit"] != "on":
        raise Failed(f"PostgreSQL is not durable: {postgresql}")
    said = lambda *command: subprocess.run(command, capture_output=True, text=True)
    wrk = said("wrk", "-v").stdout.split("Copyright")[0].strip()
    return {
        "cpu": model[0] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "filesystem": said("findmnt", "-n", "-o", "FSTYPE", "-T", str(world.directory)).stdout.strip() or "?",
        "postgresql": postgresql,
        "nginx": said("nginx", "-v").stderr.strip().rpartition("/")[2],
        "wrk": wrk,
        "request_bytes": BODY.stat().st_size,
        "answer_bytes": (WORLD / "answer.json").stat().st_size,
        "policies": sum(path.read_text().count("@id(") for path in (WORLD / "policies").glob("*.cedar")),
    }


COLUMNS = (
    ("req/s", "requests_per_second", "{:,.0f}"),
    ("÷ direct", "requests_per_second_to_direct", "{:.2f}"),
    ("÷ nginx", "requests_per_second_to_nginx", "{:.2f}"),
    ("p50 µs", "p50_micros", "{:,.0f}"),
    ("÷ nginx", "p50_micros_to_nginx", "{:.2f}"),
    ("p99 µs", "p99_micros", "{:,.0f}"),
    ("CPU µs/req", "proxy_cpu_micros", "{:.1f}"),
    ("PostgreSQL", "postgresql_cpu_micros", "{:.1f}"),
)


def show(report):
    line = "{:>11}  {:<9}" + "{:>11}" * len(COLUMNS)
    print(line.format("connections", "", *(title for title, _, _ in COLUMNS)))
    for row in report["results"]:
        if row["target"] == TARGETS[0]:
            print()
        cells = (form.format(row[name]) if name in row else "" for _, name, form in COLUMNS)
        print(line.format(row["connections"], row["target"], *cells))
    machine, records, load = report["machine"], report["records"], report["others"]
    idle, most = (size / 1e6 for size in (report["memory"]["idle"], report["memory"]["most"]))
    where = "proxy on one core; load generator, API and PostgreSQL on another"
    print(f"""
{machine["cpu"]}, {machine["cores"]} cores, Linux {machine["kernel"]}; {where if report["cores_held"] else "all on one core"}
PostgreSQL {machine["postgresql"]["server_version"]}, fsync on; flush of one page {report["flush_micros"]["median"]:,.0f} µs \
(rounds between {report["flush_micros"]["least"]:,.0f} and {report["flush_micros"]["most"]:,.0f}) on {machine["filesystem"]}; \
nginx {machine["nginx"]}; {machine["wrk"]}
POST of {machine["request_bytes"]} bytes, answer of {machine["answer_bytes"]}; key, input and output schema, \
{machine["policies"]} policies, intent and outcome committed before the answer
{report["rounds"]} rounds of {report["seconds"]} s each; medians, ratios taken within a round; other work on the machine: \
{load["median"]:.2f} cores (most in a round {load["most"]:.2f})
Toolgate's memory: {idle:.0f} MB idle, {most:.0f} MB at most
records: every answer through Toolgate was 2xx; {records["answered"]:,} answered, {records["recorded"]:,} recorded as completed \
({records["recorded"] - records["answered"]:,} more, of at most {records["possibly_cut_off"]:,} cut off when wrk stopped)""")


def arguments():
    parser = argparse.ArgumentParser(prog="benches/load", description="What Toolgate costs, beside nginx and nothing.")
    parser.add_argument("--seconds", type=int, help="length of one run of wrk [default: 3]")
    parser.add_argument("--rounds", type=int, help="how often everything is measured [default: 5]")
    parser.add_argument("--connections", default="1 16 64 256", help="numbers of connections [default: %(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--short", action="store_true", help="a minute, to see that everything works")
    parser.add_argument("--binary", metavar="FILE", help="measure this toolgate instead of building one")
    chosen = parser.parse_args()
    chosen.seconds = chosen.seconds or 3
    chosen.rounds = chosen.rounds or (1 if chosen.short else 5)
    try:
        chosen.levels = [int(level) for level in chosen.connections.replace(",", " ").split()]
    except ValueError:
        chosen.levels = []
    if not chosen.levels or min([chosen.seconds, chosen.rounds, *chosen.levels]) < 1:
        parser.error("--seconds, --rounds and --connections take numbers from 1")
    if not chosen.binary or not os.access(chosen.binary, os.X_OK):
        parser.error("no toolgate to measure: call benches/load, which builds one")
    chosen.binary = os.path.abspath(chosen.binary)
    return chosen


def main():
    chosen = arguments()
    # However this ends, what it started must end: an exception gets there, a signal's default would not.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    begun = time.monotonic()
    world = World(chosen.binary)
    try:
        machine = about(world)
        idle = memory(world.toolgate.pid)[0]
        runs, flushes = measure(world, chosen.rounds, chosen.levels, chosen.seconds)
        most = memory(world.toolgate.pid)[1]
        records = check_records(world)
    finally:
        world.close()
    others = [one["cores_used_by_others"] for level in runs.values() for found in level.values() for one in found]
    report = {
        "machine": machine,
        "cores_held": world.core is not None,
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
        "results": summary(runs),
        "runs": runs,
        "flush_micros": {"median": statistics.median(flushes), "least": min(flushes), "most": max(flushes)},
        "others": {"median": statistics.median(others), "most": max(others)},
        "memory": {"idle": idle, "most": most},
        "records": records,
        "elapsed_seconds": time.monotonic() - begun,
    }
    if chosen.json:
        pathlib.Path(chosen.json).write_text(json.dumps(report, indent=2) + "\n")
    show(report)


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"load: {failed}")
    except KeyboardInterrupt:
        sys.exit("load: interrupted")
