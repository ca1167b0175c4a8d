//! Months are exported, the exports checked, and only then dropped: by the owner, beside a gateway that serves, and so that the
//! chains tell of it. Whatever is dropped in another way is missing.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{Datelike as _, Months, TimeDelta};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use toolgate::{
    audit::{
        keeping::{self, Dropped, KeepingError, Month, Operator},
        verify::{self, Checked, Fault, Given},
    },
    checkpoint::{Checkpoint, Frontier, SigningKey},
    clock::{self, Timestamp},
    demo::desk,
    entry::{Entry, Kind, Outcome, chain},
    ids::{CallId, InstanceId},
    secrets,
    store::audit,
};

use crate::{
    support::{MASTER, Setup, World, held, home, new_database, options, send, url},
    tampering::other,
};

/// The month that lies `ago` months back.
pub fn month(ago: u32) -> Month {
    let day = clock::now().date_naive() - Months::new(ago);
    format!("{:04}-{:02}", day.year(), day.month())
        .parse()
        .unwrap()
}

pub fn table(month: Month) -> String {
    format!("audit.entries_{}", month.to_string().replace('-', "_"))
}

/// What an earlier gateway recorded: two starts and a command, in the months 9, 8 and 7 ago. The first start lives in the first of
/// them only, the second in all. Gives the instances.
pub struct Old {
    pub database: String,
    pub first: String,
    pub second: String,
}

pub struct Writing {
    pub instance: InstanceId,
    pub seq: i64,
    pub head: chain::Hash,
    /// The tree over each so many of its entries.
    pub trees: Vec<Frontier>,
}

impl Writing {
    /// A chain that begins in a month.
    pub fn begun_in(month: Month) -> Self {
        Self {
            instance: instance_at(month.begins()),
            seq: 0,
            head: chain::START,
            trees: Vec::new(),
        }
    }

    pub async fn write(&mut self, owner: &mut PgConnection, in_month: Month, entries: Vec<Entry>) {
        for entry in entries {
            self.seq += 1;
            let at = in_month.begins() + TimeDelta::seconds(60 * self.seq);
            let row = entry.row(self.instance.as_str(), self.seq, at);
            self.head = chain::hash(&self.head, &row);
            audit::insert(owner, &[row], &[self.head]).await.unwrap();
            let mut tree = self.trees.last().cloned().unwrap_or_default();
            tree.push(&self.head);
            self.trees.push(tree);
        }
    }

    pub fn end(&self) -> Value {
        json!({"instance": self.instance, "seq": self.seq, "hash": secrets::hex(&self.head)})
    }
}

pub fn started(follows: &[Value]) -> Entry {
    Entry {
        detail: Some(json!({ "follows": follows })),
        ..Entry::new(Kind::GatewayStarted)
    }
}

/// A call that was denied, and one that was parked and ended.
pub fn calls() -> Vec<Entry> {
    let refused = Entry {
        call_id: Some(CallId::generate()),
        opens_call: true,
        agent: Some("support-bot".into()),
        decision: Some(toolgate::entry::Decision::Deny),
        reasons: vec!["denied_by_policy"],
        words: Some("a \"reason\" with 日本".to_owned()),
        ..Entry::new(Kind::Refusal)
    };
    let ended = Entry {
        call_id: Some(CallId::generate()),
        outcome: Some(Outcome::Expired),
        detail: Some(json!({"b": 1.5, "a": [null, 1e21]})),
        ..Entry::new(Kind::Ended)
    };
    vec![refused, ended]
}

/// Partitions of the months 9, 8 and 7 ago.
pub async fn months(owner: &mut PgConnection) {
    for ago in [9, 8, 7] {
        let month = month(ago);
        owner
            .execute(AssertSqlSafe(format!(
                "CREATE TABLE {} PARTITION OF audit.entries FOR VALUES FROM ('{}') TO ('{}')",
                table(month),
                month.begins().to_rfc3339(),
                month.ends().to_rfc3339()
            )))
            .await
            .unwrap();
    }
}

async fn old() -> Old {
    let database = new_database().await;
    let mut owner = PgConnection::connect_with(&options("toolgate_owner", &database))
        .await
        .unwrap();
    months(&mut owner).await;
    let (mut first, mut second) = (Writing::begun_in(month(9)), Writing::begun_in(month(9)));
    first.write(&mut owner, month(9), vec![started(&[])]).await;
    first.write(&mut owner, month(9), calls()).await;
    let follows = started(&[first.end()]);
    second.write(&mut owner, month(9), vec![follows]).await;
    for ago in [9, 8, 7] {
        second.write(&mut owner, month(ago), calls()).await;
    }
    for (instance, at) in [(&first, month(9)), (&second, month(7))] {
        sqlx::query("INSERT INTO toolgate.instances (instance_id, started_at, settled_until, ended_at) VALUES ($1, $2, $2, now())")
            .bind(instance.instance.as_str())
            .bind(at.begins())
            .execute(&mut owner)
            .await
            .unwrap();
    }
    Old {
        database,
        first: first.instance.to_string(),
        second: second.instance.to_string(),
    }
}

impl Old {
    /// A gateway that serves on it.
    pub async fn serve(&self) -> World {
        let desk = desk::start("desk-token".to_owned()).await.unwrap();
        World::start(Setup::shipped(), self.database.clone(), Arc::new(desk)).await
    }

    pub async fn owner(&self) -> PgConnection {
        PgConnection::connect_with(&options("superuser", &self.database))
            .await
            .unwrap()
    }

    async fn check(&self) -> Vec<Checked> {
        let auditor = options("toolgate_auditor", &self.database);
        verify::verify(&auditor, 2, &Given::default(), |_| {})
            .await
            .unwrap()
            .instances
    }

    /// The first wrong entry of an instance, and as what.
    async fn wrong(&self, instance: &str) -> (i64, Fault) {
        let checked = self.check().await;
        let one = checked.iter().find(|one| one.instance == instance);
        let wrong = one
            .unwrap()
            .wrong
            .clone()
            .unwrap_or_else(|| panic!("{checked:#?}"));
        (wrong.seq, wrong.fault)
    }

    /// Every chain is right, and the other program says the same.
    #[track_caller]
    fn right(&self, checked: &[Checked]) {
        for one in checked {
            assert_eq!(one.wrong, None, "{one:?}");
        }
        for one in other(&self.database) {
            assert_eq!(one["first_wrong"], Value::Null, "{one}");
        }
    }

    pub async fn export(&self, month: Month, to: &Path) -> keeping::Manifest {
        let mut auditor = PgConnection::connect_with(&options("toolgate_auditor", &self.database))
            .await
            .unwrap();
        keeping::export(&mut auditor, month, to, |_| {})
            .await
            .unwrap()
    }

    async fn drop_as(
        &self,
        role: &str,
        month: Month,
        export: &Path,
    ) -> Result<Dropped, KeepingError> {
        let by = Operator {
            os_user: Some("ada".to_owned()),
            os_uid: 1_000,
        };
        let role = options(role, &self.database);
        let held = held(&self.database);
        keeping::drop_month((&role, &held), month, export, 90, by, |_| {}, |_| {}).await
    }

    pub async fn drop_month(&self, month: Month, export: &Path) -> Result<Dropped, KeepingError> {
        self.drop_as("toolgate_owner", month, export).await
    }

    async fn stands(&self, month: Month) -> bool {
        sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(table(month))
            .fetch_one(&mut self.owner().await)
            .await
            .unwrap()
    }

    pub async fn records(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM audit.entries WHERE kind = 'partition_dropped'")
            .fetch_one(&mut self.owner().await)
            .await
            .unwrap()
    }
}

impl Old {
    /// Moves the last record of a drop, which is a chain of its own, into a month.
    pub async fn date_back(&self, to: Month) {
        let mut owner = self.owner().await;
        let (instance, detail): (String, Value) = sqlx::query_as(
            "SELECT instance_id, detail FROM audit.entries WHERE kind = 'partition_dropped'
             ORDER BY recorded_at DESC LIMIT 1",
        )
        .fetch_one(&mut owner)
        .await
        .unwrap();
        self.forget(&[instance]).await;
        let at = to.begins() + TimeDelta::days(2);
        self.tell_signed(&instance_at(at), at, detail).await;
    }

    async fn forget(&self, instances: &[String]) {
        let mut owner = self.owner().await;
        owner
            .execute("SET session_replication_role = replica")
            .await
            .unwrap();
        sqlx::query("DELETE FROM audit.entries WHERE instance_id = ANY ($1)")
            .bind(instances)
            .execute(&mut owner)
            .await
            .unwrap();
    }

    /// Puts another record of a drop in the place of whatever is there, signed, as only whoever holds the signing key can.
    pub async fn tell_anew(&self, instance: &InstanceId, at: Timestamp, detail: Value) {
        let mut owner = self.owner().await;
        let drops: Vec<String> = sqlx::query_scalar(
            "SELECT instance_id FROM audit.entries WHERE kind = 'partition_dropped'",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        self.forget(&drops).await;
        self.tell_signed(instance, at, detail).await;
    }

    async fn tell_signed(&self, instance: &InstanceId, at: Timestamp, detail: Value) {
        let mut owner = self.owner().await;
        owner
            .execute("SET session_replication_role = replica")
            .await
            .unwrap();
        let entry = Entry {
            detail: Some(detail),
            ..Entry::new(Kind::PartitionDropped)
        };
        let (key, instance) = (held(&self.database).key, instance.as_str());
        let first = entry.row(instance, 1, at);
        let hash = chain::hash(&chain::START, &first);
        let signature = signature(&key, instance, &hash);
        let second = signature.row(instance, 2, at);
        let hashes = [hash, chain::hash(&hash, &second)];
        audit::insert(&mut owner, &[first, second], &hashes)
            .await
            .unwrap();
    }
}

/// The second entry of a chain.
pub fn signature(key: &SigningKey, instance: &str, first: &chain::Hash) -> Entry {
    let mut tree = Frontier::default();
    tree.push(first);
    let checkpoint = Checkpoint {
        origin: Checkpoint::origin_of(key.verifier().name(), instance),
        size: 1,
        root: tree.root(),
    };
    Entry {
        detail: Some(json!({"checkpoint": checkpoint.signed(key)})),
        ..Entry::new(Kind::ChainSigned)
    }
}

/// An id that was made then, later in order than those of the same moment before it.
pub fn instance_at(at: Timestamp) -> InstanceId {
    static MADE: AtomicU64 = AtomicU64::new(0);
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let ms = u128::try_from(at.timestamp_millis()).unwrap();
    let number = u128::from(MADE.fetch_add(1, Ordering::Relaxed));
    let id = ms << 80 | 7 << 76 | 2 << 62 | number;
    let digits = (0..26).rev().map(|place| {
        let digit = usize::try_from(id >> (5 * place) & 31).unwrap();
        char::from(ALPHABET[digit])
    });
    let text = format!("inst_{}", digits.collect::<String>());
    text.parse().unwrap()
}

/// What somebody does to an export's lines.
type Change = (&'static str, fn(&str) -> String);

pub struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("toolgate-keeping-{}", CallId::generate()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn toolgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .args(arguments)
        .env("TOOLGATE_MASTER_SECRET", MASTER)
        .env("DESK_URL", "http://127.0.0.1:1")
        .env("DESK_TOKEN", "desk-token")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn months_are_exported_checked_and_dropped_beside_a_gateway_that_serves() {
    let old = old().await;
    let world = old.serve().await;
    let scratch = Scratch::new();
    let export = scratch.file("first.ndjson.gz");
    let export = export.to_str().unwrap();
    let text = month(9).to_string();
    let auditor = url("toolgate_auditor", &old.database);
    let arguments = [
        "audit", "export", "--month", &text, "--to", export, "--url", &auditor,
    ];
    let output = toolgate(&arguments);
    assert!(output.status.success(), "{}", said(&output));
    // Never written over.
    assert_eq!(toolgate(&arguments).status.code(), Some(1));
    let output = toolgate(&["audit", "verify", "--export", export, "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(checked["manifest"]["contents"]["entries"], 6);
    // The lines are what was hashed: anybody can read them.
    let lines = Command::new("zcat").arg(export).output().unwrap();
    assert!(
        String::from_utf8(lines.stdout)
            .unwrap()
            .contains("a \\\"reason\\\" with 日本")
    );

    let config = |records: &str| {
        let shipped = Setup::shipped().config;
        let built_in = "database:\n  built_in:\n    home: ${env:TOOLGATE_HOME:-./.toolgate}\n";
        assert!(shipped.contains(built_in));
        let external = format!(
            "database:\n  external:\n    url: {}\n    owner_url: {}\n{records}",
            url("toolgate_gateway", &old.database),
            url("toolgate_owner", &old.database)
        );
        let path = scratch.file("toolgate.yaml");
        // The gateway that serves there has its home elsewhere.
        let key_file = home(&old.database).join("secrets/signing.key");
        let signed = format!("checkpoints:\n  key_file: {}\n", key_file.display());
        let changed = shipped.replace(built_in, &external);
        std::fs::write(&path, changed.replace("checkpoints:\n", &signed)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let drop_it = |records: &str| {
        toolgate(&[
            "audit",
            "drop",
            "--month",
            &text,
            "--export",
            export,
            "--config",
            &config(records),
        ])
    };
    // Kept for ever unless somebody says otherwise, and never for less than what can be looked at.
    let output = drop_it("");
    assert!(said(&output).contains("keep_for_days"), "{}", said(&output));
    assert_eq!(output.status.code(), Some(1));
    let output = drop_it("records:\n  keep_for_days: 89\n");
    assert!(
        said(&output).contains("at least 90 days"),
        "{}",
        said(&output)
    );
    assert!(old.stands(month(9)).await);
    let output = drop_it("records:\n  keep_for_days: 90\n");
    assert!(output.status.success(), "{}", said(&output));
    assert!(!old.stands(month(9)).await);
    let output = drop_it("records:\n  keep_for_days: 90\n");
    assert!(
        said(&output).contains("already dropped"),
        "{}",
        said(&output)
    );
    assert_eq!(old.records().await, 1);

    old.right(&old.check().await);
    // The next month's first entry hangs on a hash that only the record of the drop knows.
    let second = scratch.file("second.ndjson.gz");
    let manifest = old.export(month(8), &second).await;
    assert_eq!(manifest.contents.instances[0].first, 4);
    keeping::check(&second, |_| {}).unwrap();
    old.drop_month(month(8), &second).await.unwrap();
    old.right(&old.check().await);
    send(world.refund(None, 100)).await.expect(201);
    let world = world.restart(|setup| setup).await;
    old.right(&old.check().await);
    world.gateway.stop().await;
}

/// The entries that tell of drops are dropped in their turn: what they told is told again.
#[tokio::test]
async fn what_is_known_of_dropped_months_outlives_the_entries_that_told_of_it() {
    let old = old().await;
    // A gateway from before, of which the records name the key alone.
    old.serve().await.gateway.stop().await;
    let scratch = Scratch::new();
    let (first, second, third) = (scratch.file("1"), scratch.file("2"), scratch.file("3"));
    old.export(month(9), &first).await;
    old.drop_month(month(9), &first).await.unwrap();
    // As though that had been done two months later.
    old.date_back(month(7)).await;
    let since = month(0).begins().to_rfc3339();
    old.owner()
        .await
        .execute(AssertSqlSafe(format!(
            "SET session_replication_role = replica; DELETE FROM audit.entries WHERE recorded_at >= '{since}';
             DELETE FROM toolgate.instances WHERE started_at >= '{since}'"
        )))
        .await
        .unwrap();
    let world = old.serve().await;
    old.right(&old.check().await);
    old.export(month(8), &second).await;
    old.drop_month(month(8), &second).await.unwrap();
    old.export(month(7), &third).await;
    old.drop_month(month(7), &third).await.unwrap();
    // The gateway's first entry names the ends of two starts of which nothing is left.
    old.right(&old.check().await);
    world.gateway.stop().await;
}

#[tokio::test]
async fn nothing_is_dropped_that_the_export_does_not_hold() {
    let old = old().await;
    let scratch = Scratch::new();
    let good = scratch.file("good");
    old.export(month(9), &good).await;
    let other_month = scratch.file("other");
    old.export(month(8), &other_month).await;
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(keeping::manifest_path(&good)).unwrap()).unwrap();
    let bytes = std::fs::read(&good).unwrap();
    let lines = {
        let output = Command::new("zcat").arg(&good).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let zipped = |lines: &str| {
        let plain = scratch.file("plain");
        std::fs::write(&plain, lines).unwrap();
        Command::new("gzip")
            .arg("-c")
            .arg(&plain)
            .output()
            .unwrap()
            .stdout
    };
    // The file's own digest and length as they would have to be, so that only what is in it can give it away.
    let fitting = |bytes: &[u8], mut manifest: Value| {
        manifest["file_sha256"] = json!(toolgate::json::sha256_hex(bytes));
        manifest["file_bytes"] = json!(bytes.len());
        manifest
    };
    let mut cases: Vec<(String, Vec<u8>, Value)> = vec![
        (
            "truncated".to_owned(),
            bytes[..bytes.len() / 2].to_vec(),
            manifest.clone(),
        ),
        (
            "one byte short".to_owned(),
            bytes[..bytes.len() - 1].to_vec(),
            manifest.clone(),
        ),
        (
            "one byte more".to_owned(),
            [bytes.clone(), vec![0]].concat(),
            manifest.clone(),
        ),
        ("empty".to_owned(), Vec::new(), manifest.clone()),
    ];
    for at in (0..bytes.len()).step_by(bytes.len() / 7) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        cases.push((format!("a bit of byte {at}"), flipped, manifest.clone()));
    }
    let changes: [Change; 5] = [
        ("a word", |lines| {
            lines.replace("a \\\"reason", "a \\\"season")
        }),
        ("a number", |lines| lines.replace("\"seq\":2", "\"seq\":3")),
        ("one line less", |lines| {
            let lines: Vec<&str> = lines.lines().collect();
            lines[..lines.len() - 1].join("\n") + "\n"
        }),
        ("the first of an instance less", |lines| {
            let mut lines: Vec<&str> = lines.lines().collect();
            lines.remove(1);
            lines.join("\n") + "\n"
        }),
        ("the end of the last line", |lines| {
            lines.trim_end().to_owned()
        }),
    ];
    for (name, change) in changes {
        let changed = change(&lines);
        assert_ne!(changed, lines, "{name}");
        let bytes = zipped(&changed);
        let manifest = fitting(&bytes, manifest.clone());
        cases.push((name.to_owned(), bytes, manifest));
    }
    for field in ["entries", "sha256"] {
        let mut wrong = manifest.clone();
        wrong["contents"][field] = if field == "entries" {
            json!(5)
        } else {
            json!("0".repeat(64))
        };
        cases.push((format!("the manifest's {field}"), bytes.clone(), wrong));
    }
    for (number, (name, bytes, manifest)) in cases.into_iter().enumerate() {
        let path = scratch.file(&format!("case-{number}"));
        std::fs::write(&path, bytes).unwrap();
        std::fs::write(keeping::manifest_path(&path), manifest.to_string()).unwrap();
        let checked = keeping::check(&path, |_| {});
        assert!(
            matches!(checked, Err(KeepingError::Export(_))),
            "{name}: {checked:?}"
        );
        let dropped = old.drop_month(month(9), &path).await;
        assert!(
            matches!(dropped, Err(KeepingError::Export(_))),
            "{name}: {dropped:?}"
        );
    }
    let dropped = old.drop_month(month(9), &other_month).await;
    assert!(
        matches!(&dropped, Err(KeepingError::Refused(why)) if why.contains("not of")),
        "{dropped:?}"
    );
    // It verifies in itself, and is not what stands in the table any more.
    let mut owner = old.owner().await;
    let mut late = Writing::begun_in(month(9));
    late.write(&mut owner, month(9), vec![Entry::new(Kind::GatewayStopped)])
        .await;
    keeping::check(&good, |_| {}).unwrap();
    let dropped = old.drop_month(month(9), &good).await;
    assert!(
        matches!(&dropped, Err(KeepingError::Refused(why)) if why.contains("export it again")),
        "{dropped:?}"
    );
    // Nor is a table exported that is not as it was written.
    owner
        .execute("SET session_replication_role = replica; UPDATE audit.entries SET words = 'forged' WHERE words IS NOT NULL")
        .await
        .unwrap();
    let mut auditor = PgConnection::connect_with(&options("toolgate_auditor", &old.database))
        .await
        .unwrap();
    let exported = keeping::export(&mut auditor, month(9), &scratch.file("forged"), |_| {}).await;
    assert!(
        matches!(exported, Err(KeepingError::Broken { seq: 2, .. })),
        "{exported:?}"
    );
    assert!(!scratch.file("forged").exists());
    assert_eq!(old.records().await, 0);
    assert!(old.stands(month(9)).await);
}

#[tokio::test]
async fn what_somebody_needs_stays() {
    let old = old().await;
    let world = old.serve().await;
    let scratch = Scratch::new();
    let mut owner = old.owner().await;
    let refused = |dropped: Result<Dropped, KeepingError>, words: &str| match dropped {
        Err(KeepingError::Refused(why)) => assert!(why.contains(words), "{why}"),
        other => panic!("{words}: {other:?}"),
    };
    for (ago, name, words) in [
        (0, "now", "is not over"),
        (1, "young", "is kept until"),
        (8, "later", "is older"),
    ] {
        if ago == 1 {
            // No gateway ran then.
            owner
                .execute(AssertSqlSafe(format!(
                    "CREATE TABLE {} PARTITION OF audit.entries FOR VALUES FROM ('{}') TO ('{}')",
                    table(month(1)),
                    month(1).begins().to_rfc3339(),
                    month(1).ends().to_rfc3339()
                )))
                .await
                .unwrap();
        }
        old.export(month(ago), &scratch.file(name)).await;
        refused(old.drop_month(month(ago), &scratch.file(name)).await, words);
    }
    let open = Entry {
        call_id: Some(CallId::generate()),
        ..calls().remove(0)
    };
    // An intent without its outcome, past every check that the gateway's own are held to.
    owner
        .execute("ALTER TABLE audit.entries DROP CONSTRAINT entries_shape")
        .await
        .unwrap();
    let mut gone = Writing::begun_in(month(9));
    let intent = Entry {
        kind: Some(Kind::Intent),
        decision: Some(toolgate::entry::Decision::Permit),
        ..open.clone()
    };
    gone.write(&mut owner, month(9), vec![intent]).await;
    let call = open.call_id.unwrap();
    old.export(month(9), &scratch.file("open")).await;
    refused(
        old.drop_month(month(9), &scratch.file("open")).await,
        call.as_str(),
    );
    let outcome = Entry {
        call_id: Some(call.clone()),
        outcome: Some(Outcome::Indeterminate),
        ..Entry::new(Kind::Outcome)
    };
    gone.write(&mut owner, month(8), vec![outcome]).await;
    // That nobody knows what became of it is no end: whoever finds out must be able to say so.
    refused(
        old.drop_month(month(9), &scratch.file("open")).await,
        call.as_str(),
    );
    let found = Entry {
        call_id: Some(call.clone()),
        outcome: Some(Outcome::Failed),
        ..Entry::new(Kind::Outcome)
    };
    gone.write(&mut owner, month(8), vec![found]).await;
    refused(
        old.drop_month(month(9), &scratch.file("open")).await,
        call.as_str(),
    );
    sqlx::query(
        "UPDATE toolgate.work SET state = 'resolved', found = 'not_executed', evidence = '-', note = '-', resolved_by = 'ada',
             resolved_at = now()
         WHERE call_id = $1",
    )
    .bind(call.as_str())
    .execute(&mut owner)
    .await
    .unwrap();

    let halt = world.halt(json!({"kind": "everything"})).await;
    sqlx::query("UPDATE toolgate.kill_switches SET pulled_at = $1")
        .bind(month(9).begins())
        .execute(&mut owner)
        .await
        .unwrap();
    refused(old.drop_month(month(9), &scratch.file("open")).await, &halt);
    world.resume(&halt).await;

    // Neither directly nor by the command does the gateway's role get rid of anything.
    let mut gateway = world.connect("toolgate_gateway").await;
    for statement in [
        format!("DROP TABLE {}", table(month(9))),
        format!(
            "ALTER TABLE audit.entries DETACH PARTITION {}",
            table(month(9))
        ),
        format!(
            "ALTER TABLE audit.entries DETACH PARTITION {} CONCURRENTLY",
            table(month(9))
        ),
        format!("TRUNCATE {}", table(month(9))),
        format!("DELETE FROM {}", table(month(9))),
    ] {
        let refused = gateway.execute(AssertSqlSafe(statement.clone())).await;
        let error = refused.expect_err(&statement);
        let code = error
            .as_database_error()
            .unwrap()
            .code()
            .unwrap()
            .into_owned();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    refused(
        old.drop_as("toolgate_gateway", month(9), &scratch.file("open"))
            .await,
        "the role that owns",
    );
    assert!(old.stands(month(9)).await);
    assert_eq!(old.records().await, 0);
    old.drop_month(month(9), &scratch.file("open"))
        .await
        .unwrap();
    world.gateway.stop().await;
}

#[tokio::test]
async fn a_month_that_went_without_a_true_record_is_missing() {
    let old = old().await;
    let world = old.serve().await;
    world.gateway.stop().await;
    let scratch = Scratch::new();
    let export = scratch.file("export");
    let manifest = old.export(month(9), &export).await;
    let mut owner = old.owner().await;
    owner
        .execute(AssertSqlSafe(format!("DROP TABLE {}", table(month(9)))))
        .await
        .unwrap();
    assert_eq!(old.wrong(&old.second).await, (1, Fault::Missing));
    assert_eq!(old.wrong(&old.first).await, (1, Fault::Unlinked));
    let dropped = old.drop_month(month(9), &export).await;
    assert!(
        matches!(dropped, Err(KeepingError::Refused(_))),
        "{dropped:?}"
    );

    let truth = json!({
        "month": month(9), "partition": "entries", "entries": 6, "instances": manifest.contents.instances,
        "earlier": [], "signing_keys": [], "by": {"os_user": null, "os_uid": 0, "database_role": "toolgate_owner"},
        "export": {"file_sha256": "", "file_bytes": 0, "contents_sha256": ""},
    });
    // Even under the signature of whoever holds the key.
    let by = InstanceId::generate();
    // Which of the ends is the second start's.
    let at = usize::from(manifest.contents.instances[1].instance == old.second);
    for (field, forged) in [
        ("hash", json!("ab".repeat(32))),
        ("hash", json!("not a hash")),
        ("last", json!(2)),
        ("last", json!(4)),
        ("instance", json!("inst_other")),
    ] {
        let mut detail = truth.clone();
        detail["instances"][at][field] = forged.clone();
        old.tell_anew(&by, clock::now(), detail).await;
        assert_eq!(
            old.wrong(&old.second).await,
            (1, Fault::Missing),
            "{field} {forged}"
        );
        let theirs = other(&old.database);
        let theirs = theirs
            .iter()
            .find(|one| one["instance"] == old.second.as_str());
        assert_eq!(theirs.unwrap()["first_wrong"], 1, "{field} {forged}");
    }
    old.tell_anew(&by, clock::now(), truth).await;
    old.right(&old.check().await);
    // The truth in an entry that was changed is not believed.
    owner
        .execute("SET session_replication_role = replica; UPDATE audit.entries SET words = 'x' WHERE kind = 'partition_dropped'")
        .await
        .unwrap();
    assert_eq!(old.wrong(&old.second).await, (1, Fault::Missing));
    assert_eq!(old.wrong(&old.first).await, (1, Fault::Unlinked));
}

/// Killed between the record and the drop, while somebody reads the month for a long time: calls go on meanwhile, nothing is wrong in
/// between, and the same command ends it.
#[tokio::test]
async fn a_drop_that_was_interrupted_is_ended_by_the_same_command_and_calls_go_on() {
    let old = old().await;
    let world = old.serve().await;
    let scratch = Scratch::new();
    let export = scratch.file("export");
    old.export(month(9), &export).await;
    let mut reader = world.connect("toolgate_auditor").await;
    reader
        .execute("BEGIN; SELECT count(*) FROM audit.entries")
        .await
        .unwrap();
    let mut slowest = Duration::ZERO;
    {
        let dropping = old.drop_month(month(9), &export);
        let mut dropping = std::pin::pin!(dropping);
        let until = Instant::now() + Duration::from_secs(4);
        let mut calls = 0;
        while Instant::now() < until {
            let began = Instant::now();
            tokio::select! {
                ended = &mut dropping => panic!("{ended:?}"),
                answer = send(world.refund(None, 100)) => { answer.expect(201); }
            }
            slowest = slowest.max(began.elapsed());
            calls += 1;
        }
        assert!(calls > 20, "{calls} calls");
        assert_eq!(old.records().await, 1);
        // Dropping the future here is what a kill does: its connection closes.
    }
    assert!(slowest < Duration::from_secs(1), "a call took {slowest:?}");
    old.right(&old.check().await);
    assert!(old.stands(month(9)).await);
    reader.execute("COMMIT").await.unwrap();
    let mut ended = None;
    for _ in 0..50 {
        // The server notices that the other connection is gone when its wait ends.
        match old.drop_month(month(9), &export).await {
            Err(KeepingError::Refused(why)) if why.contains("at work") => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => {
                ended = Some(other);
                break;
            }
        }
    }
    assert!(matches!(ended, Some(Ok(Dropped::Now(_)))), "{ended:?}");
    assert!(!old.stands(month(9)).await);
    assert_eq!(old.records().await, 1);
    assert!(matches!(
        old.drop_month(month(9), &export).await,
        Ok(Dropped::Before(_))
    ));
    old.right(&old.check().await);
    world.gateway.stop().await;
}

#[tokio::test]
async fn months_follow_each_other_over_new_year() {
    let database = new_database().await;
    let mut owner = PgConnection::connect_with(&options("toolgate_owner", &database))
        .await
        .unwrap();
    // In a session far from UTC, as somebody's may be.
    owner
        .execute("SET TIME ZONE 'Pacific/Kiritimati'; SELECT audit.ensure_partitions(14)")
        .await
        .unwrap();
    let year = clock::now().date_naive().year() + 1;
    for (at, table) in [
        (
            format!("{}-12-31T23:59:59.999999Z", year - 1),
            format!("audit.entries_{}_12", year - 1),
        ),
        (
            format!("{year}-01-01T00:00:00Z"),
            format!("audit.entries_{year}_01"),
        ),
    ] {
        let (instance, entry) = (InstanceId::generate(), Entry::new(Kind::GatewayStopped));
        let row = entry.row(instance.as_str(), 1, at.parse().unwrap());
        let hash = chain::hash(&chain::START, &row);
        audit::insert(&mut owner, &[row], &[hash]).await.unwrap();
        let found: String = sqlx::query_scalar(
            "SELECT tableoid::regclass::text FROM audit.entries WHERE instance_id = $1",
        )
        .bind(instance.as_str())
        .fetch_one(&mut owner)
        .await
        .unwrap();
        assert_eq!(found, table);
    }
}

/// A month without a partition: calls are refused, nothing that must be told is lost, and it goes on by itself when there is one.
#[tokio::test]
async fn a_month_without_partition_refuses_calls_and_loses_nothing() {
    let world = World::shipped().await;
    let mut owner = world.connect("superuser").await;
    let ready = || {
        send(world.anybody(
            reqwest::Method::GET,
            &format!("http://{}/readyz", world.gateway.agents),
        ))
    };
    ready().await.expect(200);
    owner
        .execute(AssertSqlSafe(format!(
            "REVOKE EXECUTE ON FUNCTION audit.ensure_partitions(integer) FROM toolgate_gateway; DROP TABLE {}",
            table(month(0))
        )))
        .await
        .unwrap();
    for _ in 0..3 {
        send(world.refund(None, 100))
            .await
            .problem(503, "record_unavailable");
    }
    ready().await.expect(503);
    assert_eq!(world.received("POST /refunds"), 0);
    owner
        .execute("GRANT EXECUTE ON FUNCTION audit.ensure_partitions(integer) TO toolgate_gateway")
        .await
        .unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while ready().await.status != 200 {
        assert!(Instant::now() < until, "it does not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    send(world.refund(None, 100)).await.expect(201);
    let refused: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit.entries WHERE reasons = '{record_unavailable}'",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(refused, 3);
    world.gateway.stop().await;
}
