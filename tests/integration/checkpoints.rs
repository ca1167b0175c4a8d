//! With a checkpoint that was kept outside the database its owner can hide nothing, however well they know how hashes are made;
//! and no checkpoint passes that the gateway did not sign for just these entries.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::TryStreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use toolgate::{
    audit::verify::{self, Checked, Fault, Given, Problem, Report},
    checkpoint::{Checkpoint, Handover, Note, SigningKey, VerifierKey},
    entry::chain,
    signing,
    store::audit_log,
};

use crate::support::{Setup, World, home, options, send, server_directory, url};

/// A checkpoint every few entries.
fn setup() -> Setup {
    Setup::shipped()
        .config("every_entries: 1000", "every_entries: 4")
        .config("every_seconds: 60", "every_seconds: 1")
}

pub fn key_file(database: &str) -> PathBuf {
    home(database).join("secrets/signing.key")
}

pub fn checkpoints(database: &str) -> PathBuf {
    home(database).join("checkpoints")
}

pub fn vkey(database: &str) -> VerifierKey {
    let path = signing::public(&key_file(database));
    std::fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// The notes that were kept, in order.
pub fn notes(database: &str) -> Vec<String> {
    let file = std::fs::read(checkpoints(database)).unwrap();
    toolgate::checkpoint::notes(file.as_slice())
        .map(|split| String::from_utf8(split.unwrap().bytes).unwrap())
        .collect()
}

pub fn parsed(note: &str) -> Checkpoint {
    Checkpoint::parse(Note::parse(note.as_bytes()).unwrap().text()).unwrap()
}

async fn work(world: &World) {
    for amount in [100, 101, 102, 103] {
        send(world.refund(None, amount)).await.expect(201);
    }
    world.parked(None, 25_000).await;
    send(world.refund(None, 250_000)).await.expect(403);
    send(world.agent(Method::GET, "/desk/customers/c_1001"))
        .await
        .expect(200);
}

/// Two starts with calls, then the end. Gives the database and the instances with a log, in order.
async fn log() -> (String, Vec<String>) {
    let world = setup().start().await;
    work(&world).await;
    let world = world.restart(|setup| setup).await;
    work(&world).await;
    let database = world.database.clone();
    world.gateway.stop().await;
    let instances = instances(&database);
    assert_eq!(instances.len(), 2);
    (database, instances)
}

fn instances(database: &str) -> Vec<String> {
    let all: BTreeSet<String> = notes(database)
        .iter()
        .map(|note| parsed(note).log().unwrap().1.to_owned())
        .collect();
    all.into_iter().collect()
}

async fn owner(database: &str) -> PgConnection {
    let mut owner = PgConnection::connect_with(&options("superuser", database))
        .await
        .unwrap();
    owner
        .execute(
            "SET session_replication_role = replica;
             ALTER TABLE audit.entries DROP CONSTRAINT entries_shape",
        )
        .await
        .unwrap();
    owner
}

pub async fn check(database: &str, files: &[&Path], keys: &[VerifierKey]) -> Report {
    let given = Given {
        checkpoints: files.iter().map(|path| path.to_path_buf()).collect(),
        keys: keys.to_vec(),
    };
    verify::verify(&options("toolgate_auditor", database), 3, &given, |_| {})
        .await
        .unwrap()
}

pub fn of<'r>(report: &'r Report, instance: &str) -> &'r Checked {
    let found = report.instances.iter().find(|one| one.instance == instance);
    found.unwrap_or_else(|| panic!("{report:#?}"))
}

/// Writes notes into a file of the test's own.
pub fn file(database: &str, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = home(database).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// What the script that shares no code with the gateway says.
fn other(database: &str, files: &[&Path], keys: &[VerifierKey]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verify_chain.py");
    let printed = Command::new("psql")
        .args([
            "-AtX",
            "-h",
            &server_directory(),
            "-U",
            "superuser",
            "-d",
            database,
        ])
        .args([
            "-c",
            "SELECT to_jsonb(e) FROM audit.entries AS e ORDER BY instance_id, seq, recorded_at",
        ])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let rows = file(database, "rows.jsonl", printed.stdout);
    let mut command = Command::new("python3");
    command.arg(script).arg("--json");
    for path in files {
        command.arg("--checkpoint").arg(path);
    }
    for key in keys {
        command.arg("--key").arg(key.to_string());
    }
    let said = command
        .stdin(std::fs::File::open(rows).unwrap())
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    serde_json::from_slice(&said.stdout).unwrap()
}

/// Both programs on the same: whether the same checkpoints fit, and the same do not.
pub fn agrees(database: &str, report: &Report, files: &[&Path], keys: &[VerifierKey]) {
    let theirs = other(database, files, keys);
    assert_eq!(
        json!([
            report.checkpoints.read,
            report.checkpoints.fit,
            report
                .checkpoints
                .refused
                .iter()
                .map(|one| one.line)
                .collect::<BTreeSet<_>>(),
            report.checkpoints.dropped,
        ]),
        theirs["checkpoints"],
        "{report:#?}"
    );
}

#[tokio::test]
async fn a_log_fits_its_checkpoints_and_another_program_agrees() {
    let (database, instances) = log().await;
    let (path, key) = (checkpoints(&database), vkey(&database));
    let report = check(&database, &[&path], std::slice::from_ref(&key)).await;
    assert!(report.right, "{report:#?}");
    let kept = notes(&database);
    assert!(kept.len() >= 6, "{}", kept.len());
    assert_eq!(report.checkpoints.fit, kept.len() as u64);
    for instance in &instances {
        let one = of(&report, instance);
        // The last one was made at the stop, of everything.
        assert_eq!(one.checkpointed, u64::try_from(one.last).ok());
    }
    agrees(&database, &report, &[&path], std::slice::from_ref(&key));

    let said = Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .args(["audit", "verify", "--json", "--url"])
        .arg(url("toolgate_auditor", &database))
        .arg("--checkpoint")
        .arg(&path)
        .args(["--key", &key.to_string()])
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["checkpoints"]["fit"], json!(kept.len()));
}

/// Makes every hash of an instance anew, as somebody does who knows how.
async fn rehash(owner: &mut PgConnection, instance: &str) {
    let rows: Vec<_> = audit_log::rows(owner, instance, 1, i64::MAX)
        .try_collect()
        .await
        .unwrap();
    let mut head = chain::START;
    for stored in &rows {
        head = chain::hash(&head, &stored.row());
        sqlx::query("UPDATE audit.entries SET hash = $1 WHERE instance_id = $2 AND seq = $3")
            .bind(head.as_slice())
            .bind(instance)
            .bind(stored.seq)
            .execute(&mut *owner)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_last_start_made_anew_or_cut_is_found() {
    let (database, instances) = log().await;
    let (path, key) = (checkpoints(&database), vkey(&database));
    let instance = &instances[1];
    let last = of(&check(&database, &[], &[]).await, instance).last;
    let mut owner = owner(&database).await;
    owner
        .execute("CREATE TABLE public.backup AS TABLE audit.entries")
        .await
        .unwrap();
    let of_it = format!("instance_id = '{instance}'");
    let shift = |from: i64, by: i64| {
        format!(
            "UPDATE audit.entries SET seq = -(seq + {by}) WHERE {of_it} AND seq >= {from};
             UPDATE audit.entries SET seq = -seq WHERE {of_it} AND seq < 0;"
        )
    };
    let seq = 7;
    let cases = [
        (
            "changed",
            format!("UPDATE audit.entries SET words = 'forged' WHERE {of_it} AND seq = {seq}"),
            Fault::Rewritten,
            seq,
        ),
        (
            "taken out",
            format!("DELETE FROM audit.entries WHERE {of_it} AND seq = {seq}; {}", shift(seq + 1, -1)),
            Fault::Rewritten,
            seq,
        ),
        (
            "put in",
            format!(
                "{} INSERT INTO audit.entries SELECT (jsonb_populate_record(e, '{{\"seq\": {seq}, \"words\": \"forged\"}}')).*
                 FROM audit.entries AS e WHERE {of_it} AND seq = {}",
                shift(seq, 1),
                seq - 1
            ),
            Fault::Rewritten,
            seq,
        ),
        (
            "put into another order",
            format!(
                "UPDATE audit.entries SET seq = CASE seq WHEN {seq} THEN -{} ELSE -{seq} END,
                     recorded_at = (SELECT recorded_at FROM audit.entries WHERE {of_it} AND seq = {seq})
                 WHERE {of_it} AND seq IN ({seq}, {});
                 UPDATE audit.entries SET seq = -seq WHERE {of_it} AND seq < 0;",
                seq + 1,
                seq + 1
            ),
            Fault::Rewritten,
            seq,
        ),
        (
            "all of it",
            format!("UPDATE audit.entries SET words = 'forged' WHERE {of_it}"),
            Fault::Rewritten,
            1,
        ),
        (
            "cut",
            format!("DELETE FROM audit.entries WHERE {of_it} AND seq > {}", last - 3),
            Fault::TailCut,
            last - 2,
        ),
        (
            "cut to one entry",
            format!("DELETE FROM audit.entries WHERE {of_it} AND seq > 1"),
            Fault::TailCut,
            2,
        ),
        (
            "gone",
            format!("DELETE FROM audit.entries WHERE {of_it}"),
            Fault::Unlinked,
            1,
        ),
    ];
    for (name, statement, fault, seq) in cases {
        owner.execute(AssertSqlSafe(statement)).await.unwrap();
        rehash(&mut owner, instance).await;
        // The forger has left no contradiction inside the database; that is why there are checkpoints.
        let inside = check(&database, &[], &[]).await;
        assert!(inside.right, "{name}: {inside:#?}");
        let report = check(&database, &[&path], std::slice::from_ref(&key)).await;
        assert!(!report.right, "{name}");
        let wrong = of(&report, instance).wrong.as_ref().unwrap();
        assert_eq!(wrong.fault, fault, "{name}: {wrong:?}");
        match wrong.until {
            // Between two checkpoints, which are four entries apart.
            Some(until) => assert!(
                wrong.seq <= seq && seq <= until && until - wrong.seq < 8,
                "{name}: {wrong:?}"
            ),
            None => assert_eq!(wrong.seq, seq, "{name}: {wrong:?}"),
        }
        // The start before it is as it was.
        assert_eq!(of(&report, &instances[0]).wrong, None, "{name}");
        agrees(&database, &report, &[&path], std::slice::from_ref(&key));
        owner
            .execute(
                "TRUNCATE audit.entries; INSERT INTO audit.entries SELECT * FROM public.backup",
            )
            .await
            .unwrap();
    }
    assert!(check(&database, &[&path], &[key]).await.right);
}

/// A changed entry that the chain itself names is not blurred by what checkpoints know.
#[tokio::test]
async fn an_entry_that_is_named_exactly_stays_so() {
    let (database, instances) = log().await;
    let mut owner = owner(&database).await;
    owner
        .execute(AssertSqlSafe(format!(
            "UPDATE audit.entries SET words = 'forged', hash = sha256('forged') WHERE instance_id = '{}' AND seq = 6",
            instances[1]
        )))
        .await
        .unwrap();
    let report = check(&database, &[&checkpoints(&database)], &[]).await;
    let wrong = of(&report, &instances[1]).wrong.as_ref().unwrap();
    assert_eq!(
        (wrong.seq, wrong.fault, wrong.until),
        (6, Fault::Changed, None)
    );
    assert!(report.checkpoints.wrong > 0);
}

#[tokio::test]
async fn forged_checkpoints_are_refused_by_name() {
    let (database, instances) = log().await;
    let key = vkey(&database);
    let real = signing::load(&key_file(&database)).unwrap().key;
    let stranger = SigningKey::generate(key.name()).unwrap();
    let kept = notes(&database);
    let (first, second) = (&kept[0], &kept[1]);
    let (one, two) = (parsed(first), parsed(second));
    let signature = first.rsplit_once("\n\n").unwrap().1;
    let last = of(&check(&database, &[], &[]).await, &instances[1]).last;
    let fresh = toolgate::ids::InstanceId::generate();
    let root = |checkpoint: &Checkpoint| STANDARD.encode(checkpoint.root);
    let cases = [
        (
            "another key of the same name",
            one.signed(&stranger),
            Problem::UnknownKey,
        ),
        (
            "another instance's",
            first.replace(&instances[0], &instances[1]),
            Problem::ForgedSignature,
        ),
        (
            "another size",
            first.replace(&format!("\n{}\n", one.size), &format!("\n{}\n", two.size)),
            Problem::ForgedSignature,
        ),
        (
            "another root",
            first.replace(&root(&one), &root(&two)),
            Problem::ForgedSignature,
        ),
        (
            "no signature",
            first.replace(signature, ""),
            Problem::Malformed,
        ),
        (
            "its signature twice",
            first.replace(signature, &signature.repeat(2)),
            Problem::Malformed,
        ),
        (
            "another's signature",
            first.replace(signature, second.rsplit_once("\n\n").unwrap().1),
            Problem::ForgedSignature,
        ),
        ("no note", "something else\n".to_owned(), Problem::Malformed),
        ("nothing", String::new(), Problem::Malformed),
        (
            "half a note",
            first[..first.len() - 9].to_owned(),
            Problem::Malformed,
        ),
        (
            "an unknown start",
            Checkpoint {
                origin: Checkpoint::origin_of(key.name(), fresh.as_str()),
                ..one.clone()
            }
            .signed(&real),
            Problem::UnknownInstance,
        ),
        (
            "another installation",
            Checkpoint {
                origin: Checkpoint::origin_of("elsewhere", &instances[0]),
                ..one.clone()
            }
            .signed(&real),
            Problem::UnknownInstance,
        ),
        (
            "beyond the end",
            Checkpoint {
                origin: Checkpoint::origin_of(key.name(), &instances[1]),
                size: u64::try_from(last).unwrap() + 1,
                ..one.clone()
            }
            .signed(&real),
            Problem::BeyondEnd,
        ),
        (
            "no entry at all",
            Checkpoint {
                size: 0,
                ..one.clone()
            }
            .signed(&real),
            Problem::Malformed,
        ),
        (
            "sizes and roots exchanged",
            Checkpoint {
                size: two.size,
                ..one.clone()
            }
            .signed(&real),
            Problem::RootDiffers,
        ),
    ];
    for (name, note, problem) in cases {
        let path = file(&database, "forged", &note);
        let report = check(&database, &[&path], std::slice::from_ref(&key)).await;
        assert!(!report.right, "{name}");
        let refused = &report.checkpoints.refused;
        assert_eq!(refused.len(), 1, "{name}: {refused:?}");
        assert_eq!(refused[0].problem, problem, "{name}: {refused:?}");
        // Whoever cannot sign cannot make the records look wrong.
        let accuses = matches!(problem, Problem::BeyondEnd | Problem::RootDiffers)
            || name == "an unknown start";
        assert_eq!(
            report.instances.iter().any(|one| one.wrong.is_some()),
            accuses,
            "{name}: {report:#?}"
        );
        if name != "nothing" {
            agrees(&database, &report, &[&path], std::slice::from_ref(&key));
        }
    }
    // Without the key, the first that the records name is believed, and it is the same.
    assert!(
        check(&database, &[&checkpoints(&database)], &[])
            .await
            .right
    );
    let report = check(
        &database,
        &[&checkpoints(&database)],
        &[stranger.verifier().clone()],
    )
    .await;
    assert_eq!(report.checkpoints.fit, 0);
    let wrong = of(&report, &instances[0]).wrong.as_ref().unwrap();
    assert_eq!((wrong.seq, wrong.fault), (2, Fault::UnprovedKey));
}

#[tokio::test]
async fn no_bit_of_a_checkpoint_can_be_turned() {
    let (database, _) = log().await;
    let note = notes(&database)[0].clone().into_bytes();
    let mut all = Vec::new();
    for bit in 0..note.len() * 8 {
        let mut changed = note.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        all.extend_from_slice(&changed);
        all.extend_from_slice(b"\n\n");
    }
    let path = file(&database, "flipped", &all);
    let report = check(&database, &[&path], &[vkey(&database)]).await;
    assert_eq!(report.checkpoints.fit, 0, "{:#?}", report.checkpoints);
    assert!(report.checkpoints.read >= note.len() as u64 * 8);
    assert!(report.instances.iter().all(|one| one.wrong.is_none()));
}

/// Until the chain names this key.
async fn named(world: &World, key: &VerifierKey) {
    for _ in 0..300 {
        let mut auditor = world.connect("toolgate_auditor").await;
        let changes = audit_log::signing_keys(&mut auditor).await.unwrap();
        let last = changes.last().and_then(|change| change.detail.clone());
        if last.is_some_and(|detail| {
            serde_json::from_str::<Value>(&detail).unwrap()["new"] == key.to_string()
        }) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the chain does not name {key}");
}

#[tokio::test]
async fn keys_are_followed_from_one_to_the_next() {
    let world = setup().start().await;
    let database = world.database.clone();
    let first = signing::load(&key_file(&database)).unwrap().key;
    work(&world).await;
    // Beside the running gateway, by the command.
    let said = Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .args(["audit", "rotate-key", "--json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("TOOLGATE_HOME", home(&database))
        .env("TOOLGATE_MASTER_SECRET", crate::support::MASTER)
        .env("DESK_URL", "http://127.0.0.1:1")
        .env("DESK_TOKEN", "none")
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["old"], first.verifier().to_string());
    let second: VerifierKey = said["new"].as_str().unwrap().parse().unwrap();
    named(&world, &second).await;
    work(&world).await;
    // Twice while no gateway runs.
    let (setup, desk) = (world.setup.clone(), Arc::clone(&world.desk));
    world.gateway.stop().await;
    let (_, _third) = signing::rotate(&key_file(&database), "toolgate").unwrap();
    let (_, fourth) = signing::rotate(&key_file(&database), "toolgate").unwrap();
    let world = World::start(setup, database.clone(), desk).await;
    work(&world).await;
    world.gateway.stop().await;

    let path = checkpoints(&database);
    let signers: BTreeSet<String> = notes(&database)
        .iter()
        .map(|note| {
            let note = Note::parse(note.as_bytes()).unwrap();
            let keys = [first.verifier(), &second, &fourth];
            note.signers(keys.into_iter()).unwrap()[0].to_string()
        })
        .collect();
    assert_eq!(signers.len(), 3);
    for keys in [vec![], vec![first.verifier().clone()], vec![fourth.clone()]] {
        let report = check(&database, &[&path], &keys).await;
        assert!(report.right, "{report:#?}");
        assert_eq!(report.keys.len(), 4);
        agrees(&database, &report, &[&path], &keys);
    }
    // The old key has no say over what came after it, though it signs the very root that stands there.
    let end = parsed(notes(&database).last().unwrap());
    let stale = file(&database, "stale", end.signed(&first));
    let report = check(&database, &[&stale], &[first.verifier().clone()]).await;
    assert_eq!(report.checkpoints.refused[0].problem, Problem::RetiredKey);
    agrees(&database, &report, &[&stale], &[first.verifier().clone()]);
}

#[tokio::test]
async fn a_key_that_was_put_in_anothers_place_is_noticed() {
    let world = setup().start().await;
    let database = world.database.clone();
    let first = vkey(&database);
    work(&world).await;
    let (setup, desk) = (world.setup.clone(), Arc::clone(&world.desk));
    world.gateway.stop().await;
    std::fs::remove_file(key_file(&database)).unwrap();
    let world = World::start(setup, database.clone(), desk).await;
    work(&world).await;
    world.gateway.stop().await;
    let (second, path) = (vkey(&database), checkpoints(&database));
    assert_ne!(first, second);
    let instances = instances(&database);
    let report = check(&database, &[&path], std::slice::from_ref(&first)).await;
    let wrong = of(&report, &instances[1]).wrong.as_ref().unwrap();
    assert_eq!(
        (wrong.seq, wrong.fault),
        (2, Fault::UnprovedKey),
        "{wrong:?}"
    );
    let refused = &report.checkpoints.refused;
    assert!(!refused.is_empty());
    assert!(
        refused
            .iter()
            .all(|one| one.problem == Problem::UntrustedKey)
    );
    agrees(&database, &report, &[&path], std::slice::from_ref(&first));
    // Whoever knows that it was replaced on purpose says so.
    let report = check(&database, &[&path], &[first.clone(), second]).await;
    assert!(report.right, "{report:#?}");

    // A proof that the old key did not sign proves nothing, however well it is put into the chain.
    let (old, new) = (
        SigningKey::generate("toolgate").unwrap(),
        signing::load(&key_file(&database)).unwrap().key,
    );
    let forged = Handover::sign(&old, &new)
        .note()
        .replace(&old.verifier().to_string(), &first.to_string());
    let mut owner = owner(&database).await;
    sqlx::query(
        "UPDATE audit.entries SET detail = detail || jsonb_build_object('handover', $1::text)
         WHERE instance_id = $2 AND seq = 2",
    )
    .bind(forged)
    .bind(&instances[1])
    .execute(&mut owner)
    .await
    .unwrap();
    rehash(&mut owner, &instances[1]).await;
    let report = check(&database, &[], &[]).await;
    let wrong = of(&report, &instances[1]).wrong.as_ref().unwrap();
    assert_eq!(
        (wrong.seq, wrong.fault),
        (2, Fault::UnprovedKey),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn a_key_that_others_can_read_keeps_the_gateway_from_starting() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = setup().start().await;
    let (setup, desk, database) = (
        world.setup.clone(),
        Arc::clone(&world.desk),
        world.database.clone(),
    );
    world.gateway.stop().await;
    std::fs::set_permissions(key_file(&database), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = crate::support::start_gateway(&setup, &database, &desk)
        .await
        .err()
        .unwrap();
    assert!(error.contains("chmod 600"), "{error}");
}

/// The tree grows with what stands and with nothing else, also where the answer to a commit was lost.
#[tokio::test]
async fn broken_connections_leave_the_tree_right() {
    let world = Arc::new(setup().start().await);
    let mut superuser = world.connect("superuser").await;
    for round in 0..6 {
        let calls: Vec<_> = (0..24)
            .map(|number| {
                let request = world.refund(None, 100 + number);
                tokio::spawn(async move { send(request).await.status })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        superuser
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'toolgate writer' AND datname = current_database()",
            )
            .await
            .unwrap();
        for call in calls {
            let status = call.await.unwrap();
            assert!(matches!(status, 201 | 503), "{status}");
        }
        for _ in 0..200 {
            if send(world.refund(None, 50)).await.status == 201 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let database = world.database.clone();
    Arc::into_inner(world).unwrap().gateway.stop().await;
    let report = check(&database, &[&checkpoints(&database)], &[vkey(&database)]).await;
    assert!(report.right, "{report:#?}");
    let instance = &instances(&database)[0];
    let one = of(&report, instance);
    assert!(one.last > 100, "{one:?}");
    assert_eq!(one.checkpointed, u64::try_from(one.last).ok());
}
