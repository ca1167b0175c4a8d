//! The program itself, as a person starts it: what it says, where it says it, and how it ends.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_toolgate");

/// A directory of its own, gone at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    fn new() -> Self {
        let name = format!("toolgate-cli-{}", toolgate::ids::CallId::generate());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// A copy of what ships.
    fn with_shipped_files() -> Self {
        let scratch = Self::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for directory in ["config", "config/tools", "policies"] {
            std::fs::create_dir(scratch.0.join(directory)).unwrap();
            for entry in std::fs::read_dir(root.join(directory)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(root).unwrap();
                    std::fs::copy(&path, scratch.0.join(name)).unwrap();
                }
            }
        }
        scratch
    }

    fn home(&self) -> String {
        self.0.join("home").display().to_string()
    }

    fn config(&self) -> String {
        self.0.join("config/toolgate.yaml").display().to_string()
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let path = self.0.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{file}: {from:?}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Line and column of a text that stands once in a file.
    fn place(&self, file: &str, text: &str) -> (u64, u64) {
        let whole = std::fs::read_to_string(self.0.join(file)).unwrap();
        assert_eq!(whole.matches(text).count(), 1, "{file}: {text:?}");
        let before = &whole[..whole.find(text).unwrap()];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
        (line as u64, column as u64)
    }

    /// The program with what the shipped config takes from the environment.
    fn toolgate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .current_dir(&self.0)
            .env_remove("TOOLGATE_LOG")
            .env("TOOLGATE_HOME", self.home())
            .env(
                "TOOLGATE_MASTER_SECRET",
                "a master secret for tests only, long enough",
            )
            .env("DESK_URL", "http://127.0.0.1:1")
            .env("DESK_TOKEN", "desk-token");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.toolgate(arguments).output().unwrap())
    }
}

struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        self
    }

    /// What is said does say these things; where miette wraps lines, that does not matter.
    #[track_caller]
    fn says(&self, texts: &[&str]) {
        let said: String = format!("{} {}", self.out, self.err)
            .replace(['│', '\n'], " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        for text in texts {
            assert!(said.contains(text), "{text:?} is not in: {said}");
        }
    }
}

#[test]
fn check_finds_nothing_wrong_with_what_ships() {
    let scratch = Scratch::with_shipped_files();
    let ended = scratch
        .run(&["check", "--config", &scratch.config()])
        .expect(0);
    ended.says(&["no problem"]);
    let ended = scratch
        .run(&["check", "--json", "--config", &scratch.config()])
        .expect(0);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["problems"], 0);
    assert!(
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|finding| finding["severity"] == "note")
    );
}

/// Mistakes of every kind: file, what stands there, the mistake, and where it begins.
const MISTAKES: [(&str, &str, &str, &str); 7] = [
    (
        "config/toolgate.yaml",
        "      - desk.refunds:write",
        "      - Refunds Write",
        "Refunds Write",
    ),
    (
        "config/toolgate.yaml",
        "  - etcd.cluster:read",
        "  - etcd-cluster-read",
        "etcd-cluster-read",
    ),
    (
        "config/toolgate.yaml",
        "value: Bearer ${env:DESK_TOKEN}",
        "value: Bearer ${env:NO_SUCH_TOKEN}",
        "Bearer ${env:NO_SUCH_TOKEN}",
    ),
    (
        "config/tools/desk.yaml",
        "consequence: permission_change",
        "consequence: permissions_change",
        "permissions_change",
    ),
    (
        "config/tools/etcd.yaml",
        "scope: etcd.leases:revoke",
        "scope: etcd leases revoke",
        "etcd leases revoke",
    ),
    (
        "policies/desk.cedar",
        "when { context.input.amount_cents <= 100000 };",
        "when { context.input.amount_in_cents <= 100000 };",
        "context.input.amount_in_cents <= 100000",
    ),
    (
        "policies/operators.cedar",
        "principal in Role::\"on-call\",\n  action in [Action::\"halt\"",
        "principal in Role::\"on-call\",\n  action in [Action::\"stop\"",
        "Action::\"stop\"",
    ),
];

fn with_mistakes() -> Scratch {
    let scratch = Scratch::with_shipped_files();
    for (file, from, to, _) in MISTAKES {
        scratch.replace(file, from, to);
    }
    scratch
}

#[test]
fn check_reports_every_mistake_at_its_place_in_one_go() {
    let scratch = with_mistakes();
    let ended = scratch
        .run(&["check", "--json", "--config", &scratch.config()])
        .expect(2);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    let errors: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["severity"] == "error")
        .collect();
    assert_eq!(report["problems"], errors.len());
    let mut missing = Vec::new();
    for (file, _, _, at) in MISTAKES {
        let (line, column) = scratch.place(file, at);
        let found = errors.iter().any(|finding| {
            let path = finding["file"].as_str().unwrap();
            let path = std::path::absolute(path).unwrap();
            path.components()
                .collect::<PathBuf>()
                .ends_with(file.rsplit('/').next().unwrap())
                && finding["line"] == line
                && finding["column"] == column
                && finding["message"].as_str().unwrap().len() > 10
        });
        if !found {
            missing.push(format!("{file}:{line}:{column} {at}"));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}\nnot in {errors:#?}");
    let drawn = scratch
        .run(&["check", "--config", &scratch.config()])
        .expect(2);
    for (file, _, _, at) in MISTAKES {
        let (line, column) = scratch.place(file, at);
        let name = file.rsplit('/').next().unwrap();
        drawn.says(&[&format!("{name}:{line}:{column}")]);
    }
}

#[test]
fn serve_does_not_start_on_what_check_refuses() {
    let scratch = with_mistakes();
    let ended = scratch
        .run(&["serve", "--config", &scratch.config()])
        .expect(1);
    for (_, _, _, at) in MISTAKES {
        ended.says(&[at]);
    }
    ended.says(&["does not start", "toolgate check"]);
    assert!(!Path::new(&scratch.home()).exists(), "something was begun");
}

#[test]
fn serve_does_not_start_without_anything_that_permits() {
    let empty = Scratch::with_shipped_files();
    std::fs::remove_dir_all(empty.0.join("policies")).unwrap();
    std::fs::create_dir(empty.0.join("policies")).unwrap();
    let none = Scratch::with_shipped_files();
    std::fs::remove_dir_all(none.0.join("policies")).unwrap();
    let forbids = Scratch::with_shipped_files();
    for file in ["desk.cedar", "etcd.cedar", "operators.cedar"] {
        std::fs::remove_file(forbids.0.join("policies").join(file)).unwrap();
    }
    let comments = Scratch::with_shipped_files();
    for file in [
        "desk.cedar",
        "etcd.cedar",
        "operators.cedar",
        "defaults.cedar",
    ] {
        std::fs::write(comments.0.join("policies").join(file), "// nothing yet\n").unwrap();
    }
    for (scratch, says) in [
        (empty, "holds no *.cedar file"),
        (none, "cannot read"),
        (forbids, "permit"),
        (comments, "permit"),
    ] {
        let ended = scratch
            .run(&["serve", "--config", &scratch.config()])
            .expect(1);
        ended.says(&[says, "does not start"]);
        scratch
            .run(&["check", "--config", &scratch.config()])
            .expect(2)
            .says(&[says]);
    }
}

#[test]
fn serve_says_what_to_do_about_a_taken_port() {
    let scratch = Scratch::with_shipped_files();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    scratch.replace("config/toolgate.yaml", "127.0.0.1:8080", &address);
    scratch.replace("config/toolgate.yaml", "127.0.0.1:8081", "127.0.0.1:0");
    let ended = scratch
        .run(&["serve", "--config", &scratch.config()])
        .expect(1);
    ended.says(&[&address, "agents", "choose another address", "in use"]);
}

#[test]
fn a_wrong_database_is_told_without_its_password() {
    for url in [
        "postgres://toolgate_gateway:hunter2-planted@127.0.0.1:1/toolgate",
        "postgres://toolgate_gateway:hunter2-planted@no-such-host.invalid/toolgate",
        "postgres//toolgate_gateway:hunter2-planted@127.0.0.1/toolgate",
        "postgres://toolgate_gateway:hunter2-planted@127.0.0.1:port/toolgate",
    ] {
        let scratch = Scratch::with_shipped_files();
        scratch.replace(
            "config/toolgate.yaml",
            "  built_in:\n    home: ${env:TOOLGATE_HOME:-./.toolgate}",
            "  external:\n    url: ${env:DATABASE_URL}",
        );
        scratch.replace("config/toolgate.yaml", "127.0.0.1:8080", "127.0.0.1:0");
        scratch.replace("config/toolgate.yaml", "127.0.0.1:8081", "127.0.0.1:0");
        let output = scratch
            .toolgate(&["serve", "--config", &scratch.config()])
            .env("DATABASE_URL", url)
            .env("TOOLGATE_LOG", "trace")
            .output()
            .unwrap();
        let ended = Ended::of(output).expect(1);
        assert!(
            ended.err.contains("because:") || ended.err.contains("postgres://"),
            "{}",
            ended.err
        );
        for text in [&ended.out, &ended.err] {
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
    }
}

#[test]
fn policy_schema_prints_what_policies_are_written_against() {
    let scratch = Scratch::with_shipped_files();
    let ended = scratch
        .run(&["policy", "schema", "--config", &scratch.config()])
        .expect(0);
    ended.says(&["desk.refunds.create", "amount_cents"]);
}

/// A demo that runs.
struct Demo {
    child: Child,
    ready: Value,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        for line in out.lines() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if event["event"] == "ready" {
                return Self {
                    child,
                    ready: event,
                };
            }
        }
        panic!("the demo ended before it was ready: {:?}", child.wait());
    }

    /// As Ctrl-C or `systemctl stop` would.
    fn stop(mut self) {
        let id = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(killed.success());
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(since.elapsed() < Duration::from_secs(30), "does not stop");
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{status}");
    }
}

fn demo_arguments(home: &str) -> [&str; 7] {
    [
        "demo",
        "--home",
        home,
        "--agents",
        "127.0.0.1:0",
        "--operators",
        "127.0.0.1:0",
    ]
}

#[test]
fn the_demo_runs_through_once_and_again_on_the_same_home() {
    let scratch = Scratch::new();
    let home = scratch.home();
    let mut arguments = demo_arguments(&home).to_vec();
    arguments.push("--once");
    let ended = scratch.run(&arguments).expect(0);
    ended.says(&["What the records say", "approval_required", "halted"]);
    arguments.push("--json");
    let ended = scratch.run(&arguments).expect(0);
    let events: Vec<Value> = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| {
        events
            .iter()
            .filter(move |event| event["event"] == kind)
            .collect::<Vec<_>>()
    };
    assert!(of("step").len() >= 12, "{events:#?}");
    assert!(of("step").iter().all(|step| step["good"] == true));
    assert!(of("audit").len() >= 7, "{events:#?}");
    for file in [
        "agent.key",
        "operator.key",
        "second-operator.key",
        "auditor.url",
    ] {
        let mode = std::fs::metadata(scratch.0.join("home").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{file} is open to others: {mode:o}");
    }
}

#[tokio::test]
async fn beside_a_running_demo_the_other_commands_work() {
    let scratch = Scratch::with_shipped_files();
    let home = scratch.home();
    let mut arguments = demo_arguments(&home).to_vec();
    arguments.push("--json");
    let demo = Demo::start(scratch.toolgate(&arguments));

    let select = [
        "psql",
        "--home",
        &home,
        "--",
        "-tAc",
        "select 40 + 2, current_user",
    ];
    let ended = scratch.run(&select).expect(0);
    assert_eq!(ended.out.trim(), "42|toolgate_auditor");
    for statement in [
        "DELETE FROM audit.entries",
        "CREATE TABLE audit.mine (a integer)",
        "SELECT * FROM toolgate.keys",
    ] {
        let write = ["psql", "--home", &home, "--", "-c", statement];
        let ended = scratch.run(&write);
        assert_ne!(ended.code, 0, "{statement}");
        ended.says(&["ERROR"]);
    }

    let second = scratch.run(&arguments).expect(1);
    second.says(&["stop"]);
    assert!(second.err.contains("because:"), "{}", second.err);

    let master = std::fs::read_to_string(scratch.0.join("home/secrets/master.secret")).unwrap();
    let create = |owner: &[&str]| {
        let config = scratch.config();
        let mut command = scratch.toolgate(&["keys", "create", "--config", &config]);
        command
            .args(owner)
            .env("TOOLGATE_MASTER_SECRET", master.trim());
        Ended::of(command.output().unwrap())
    };
    let key = create(&["--agent", "platform-bot"]).expect(0);
    let (agents, key) = (demo.ready["agents"].as_str().unwrap(), key.out.trim());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut status = 0;
    for _ in 0..100 {
        let request = client.get(format!("{agents}/v1/tools")).bearer_auth(key);
        status = request.send().await.unwrap().status().as_u16();
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status, 200, "a new key opens within seconds");
    create(&["--agent", "nobody-knows"])
        .expect(1)
        .says(&["nobody-knows"]);
    create(&[]).expect(2);
    create(&["--agent", "support-bot", "--operator", "ada"]).expect(2);

    demo.stop();
    let ended = scratch.run(&select);
    assert_ne!(ended.code, 0, "the database outlived the gateway");
    let nowhere = scratch.0.join("nowhere").display().to_string();
    scratch
        .run(&["psql", "--home", &nowhere, "--", "-c", "select 1"])
        .expect(1)
        .says(&["start the gateway"]);
}

#[test]
fn the_demo_runs_for_an_ordinary_user_too() {
    // What only root can set up; everybody else has just run it that way.
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let home = scratch.home();
    std::fs::create_dir(&home).unwrap();
    let id = |option: &str| -> u32 {
        let output = Command::new("id")
            .args([option, "nobody"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let (user, group) = (id("-u"), id("-g"));
    chown(&home, Some(user), Some(group)).unwrap();
    // Where the program was built may be closed to others.
    let program = scratch.0.join("toolgate");
    std::fs::copy(PROGRAM, &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
        .arg(&program)
        .args(demo_arguments(&home))
        .arg("--once")
        .env("HOME", &home)
        .env_remove("TOOLGATE_LOG")
        .current_dir(&home)
        .output()
        .unwrap();
    Ended::of(output).expect(0).says(&["What the records say"]);
    let auditor = std::fs::metadata(scratch.0.join("home/auditor.url")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&auditor), user);
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}
