//! What somebody can insert who knows how hashes are made, but does not hold the signing key: none of it passes, neither as the
//! database's owner nor as the gateway's own role, neither before the next start nor after it.

use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection};
use toolgate::{
    audit::verify::{Fault, Report, Uncovered},
    checkpoint::{Frontier, SigningKey},
    clock::{self, Timestamp},
    entry::{Entry, Kind, Outcome, chain},
    ids::InstanceId,
    issuing,
    keys::KeyKind,
    secrets::{self, Keyring, Secret},
    signing,
    store::audit,
};

use crate::{
    checkpoints::{check, checkpoints, of},
    keeping::{instance_at, month, signature, started},
    support::{MASTER, Setup, World, held, home, options, send},
    tampering::other,
};

async fn world() -> World {
    Setup::shipped()
        .config("every_entries: 1000", "every_entries: 4")
        .config("every_seconds: 60", "every_seconds: 1")
        .start()
        .await
}

async fn checked(database: &str) -> Report {
    let key = held(database).key.verifier().clone();
    check(database, &[&checkpoints(database)], &[key]).await
}

/// Inserts a chain, with a signature of this key behind its first entry where there is one.
async fn insert(
    role: &mut PgConnection,
    instance: &InstanceId,
    at: Timestamp,
    entries: &[Entry],
    key: Option<&SigningKey>,
) {
    let (mut rows, mut hashes): (Vec<_>, Vec<chain::Hash>) = (Vec::new(), Vec::new());
    let mut all = entries.to_vec();
    if let Some(key) = key {
        let hash = chain::hash(&chain::START, &all[0].row(instance.as_str(), 1, at));
        all.insert(1, signature(key, instance.as_str(), &hash));
    }
    for (seq, entry) in (1..).zip(&all) {
        let row = entry.row(instance.as_str(), seq, at);
        hashes.push(chain::hash(hashes.last().unwrap_or(&chain::START), &row));
        rows.push(row);
    }
    audit::insert(role, &rows, &hashes).await.unwrap();
}

async fn remove(database: &str, instance: &InstanceId) {
    let mut owner = connect("superuser", database).await;
    owner
        .execute("SET session_replication_role = replica")
        .await
        .unwrap();
    sqlx::query("DELETE FROM audit.entries WHERE instance_id = $1")
        .bind(instance.as_str())
        .execute(&mut owner)
        .await
        .unwrap();
}

/// The program that shares no code with the gateway finds the same entry.
#[track_caller]
fn agrees(database: &str, instance: &str, seq: i64) {
    let all = other(database);
    let theirs = all.iter().find(|one| one["instance"] == instance).unwrap();
    assert_eq!(theirs["first_wrong"], seq, "{instance}: {theirs}");
}

async fn connect(role: &str, database: &str) -> PgConnection {
    PgConnection::connect_with(&options(role, database))
        .await
        .unwrap()
}

#[tokio::test]
async fn no_chain_passes_that_the_installation_did_not_begin() {
    let world = world().await;
    let (call, approval) = world.parked(None, 25_000).await;
    world.shown("ada", &approval).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    world.ended(&call).await;
    for _ in 0..6 {
        send(world.refund(None, 100)).await.expect(201);
    }
    let database = world.database.clone();
    let right = checked(&database).await;
    assert!(right.right, "{right:#?}");
    assert!(right.instances.iter().all(|one| one.signed == Some(true)));
    let (key, stranger) = (
        held(&database).key,
        SigningKey::generate("toolgate").unwrap(),
    );
    let now = clock::now();
    let past = now - chrono::TimeDelta::seconds(1);
    let outcome = Entry {
        call_id: Some(call.parse().unwrap()),
        outcome: Some(Outcome::Failed),
        executed: Some(false),
        ..Entry::new(Kind::Outcome)
    };
    let vote = Entry {
        call_id: Some(call.parse().unwrap()),
        operator: Some("bob".into()),
        detail: Some(json!({"vote": "approve"})),
        ..Entry::new(Kind::ApprovalVote)
    };
    let made = || Entry::new(Kind::KeyCreated);
    let begin = || started(&[]);
    let cases = [
        (
            vec![outcome.clone()],
            instance_at(past),
            past,
            None,
            Fault::Inserted,
        ),
        (
            vec![vote],
            InstanceId::generate(),
            past,
            None,
            Fault::Inserted,
        ),
        // Not even whoever holds the key begins one with that, or dates it back.
        (
            vec![outcome.clone()],
            instance_at(past),
            past,
            Some(&key),
            Fault::Inserted,
        ),
        (
            vec![made()],
            InstanceId::generate(),
            past,
            Some(&key),
            Fault::Misdated,
        ),
        (
            vec![made(), outcome.clone()],
            InstanceId::generate(),
            now,
            Some(&key),
            Fault::Inserted,
        ),
        (vec![made()], instance_at(now), now, None, Fault::Unsigned),
        (
            vec![made()],
            instance_at(now),
            now,
            Some(&stranger),
            Fault::Unsigned,
        ),
        (
            vec![begin(), outcome.clone()],
            instance_at(past),
            past,
            None,
            Fault::Unsigned,
        ),
        (
            vec![begin(), outcome.clone()],
            instance_at(past),
            past,
            Some(&stranger),
            Fault::Unsigned,
        ),
        // As though from before anything was signed.
        (
            vec![begin(), outcome],
            instance_at(now - chrono::TimeDelta::hours(1)),
            now,
            None,
            Fault::Unsigned,
        ),
    ];
    for role in ["toolgate_gateway", "toolgate_owner"] {
        let mut connection = connect(role, &database).await;
        for (entries, instance, at, key, fault) in &cases {
            // The end of a moment that is still going on.
            let at = (*at).max(
                Timestamp::from_timestamp_millis(instance.unix_ms())
                    .filter(|_| {
                        *fault != Fault::Misdated && entries[0].kind != Some(Kind::ApprovalVote)
                    })
                    .unwrap_or(*at),
            );
            insert(&mut connection, instance, at, entries, *key).await;
            let report = checked(&database).await;
            assert!(!report.right, "{role} {fault:?}");
            let wrong = of(&report, instance.as_str()).wrong.clone().unwrap();
            assert_eq!(wrong.fault, *fault, "{role}: {report:#?}");
            agrees(&database, instance.as_str(), wrong.seq);
            remove(&database, instance).await;
        }
    }
    // The next start names it, and does not make it right.
    let (entries, instance, at, key, fault) = &cases[5];
    let mut gateway = connect("toolgate_gateway", &database).await;
    let at = (*at).max(Timestamp::from_timestamp_millis(instance.unix_ms()).unwrap());
    insert(&mut gateway, instance, at, entries, *key).await;
    let world = world.restart(|setup| setup).await;
    let report = checked(&database).await;
    let wrong = of(&report, instance.as_str()).wrong.clone();
    assert_eq!(wrong.map(|wrong| wrong.fault), Some(*fault), "{report:#?}");
    world.gateway.stop().await;
}

#[tokio::test]
async fn no_beginning_goes_under_a_record_of_a_drop_that_is_not_signed_or_not_true() {
    let world = world().await;
    for _ in 0..6 {
        send(world.refund(None, 100)).await.expect(201);
    }
    let database = world.database.clone();
    let mut owner = connect("superuser", &database).await;
    let instance: String =
        sqlx::query_scalar("SELECT instance_id FROM audit.entries WHERE kind = 'gateway_started'")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    world.gateway.stop().await;
    let hashes: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT hash FROM audit.entries WHERE instance_id = $1 AND seq <= 5 ORDER BY seq",
    )
    .bind(&instance)
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let mut tree = Frontier::default();
    for hash in &hashes {
        tree.push(&hash.as_slice().try_into().unwrap());
    }
    let peaks: Vec<String> = tree.peaks().iter().map(|peak| secrets::hex(peak)).collect();
    let detail = json!({
        "month": month(1), "partition": "entries", "entries": 5, "earlier": [], "signing_keys": [],
        "instances": [{"instance": instance, "first": 1, "last": 5, "before": "0".repeat(64),
                       "hash": secrets::hex(&hashes[4]), "tree_before": [], "tree": peaks}],
        "export": {"file_sha256": "", "file_bytes": 0, "contents_sha256": ""},
        "by": {"os_user": null, "os_uid": 0, "database_role": "toolgate_owner"},
    });
    let record = Entry {
        detail: Some(detail),
        ..Entry::new(Kind::PartitionDropped)
    };
    owner
        .execute("SET session_replication_role = replica")
        .await
        .unwrap();
    sqlx::query("DELETE FROM audit.entries WHERE instance_id = $1 AND seq <= 5")
        .bind(&instance)
        .execute(&mut owner)
        .await
        .unwrap();
    let key = held(&database).key;
    for (key, fault) in [(None, Fault::Unsigned), (Some(&key), Fault::Misdated)] {
        let at = clock::now();
        let by = instance_at(at);
        let at = at.max(Timestamp::from_timestamp_millis(by.unix_ms()).unwrap());
        insert(&mut owner, &by, at, std::slice::from_ref(&record), key).await;
        let report = checked(&database).await;
        let of_record = of(&report, by.as_str())
            .wrong
            .clone()
            .map(|wrong| wrong.fault);
        assert_eq!(of_record, Some(fault), "{report:#?}");
        let wrong = of(&report, &instance).wrong.clone().unwrap();
        assert_eq!((wrong.seq, wrong.fault), (1, Fault::Missing), "{report:#?}");
        agrees(&database, &instance, 1);
        agrees(&database, by.as_str(), 1);
        remove(&database, &by).await;
    }
}

#[tokio::test]
async fn the_texts_that_decided_are_held_against_their_digests() {
    let world = world().await;
    send(world.refund(None, 100)).await.expect(201);
    let database = world.database.clone();
    world.gateway.stop().await;
    let report = checked(&database).await;
    assert!(report.right, "{report:#?}");
    assert_eq!(report.uncovered, None::<Uncovered>);
    let mut owner = connect("superuser", &database).await;
    owner
        .execute(
            "SET session_replication_role = replica; CREATE TABLE public.kept AS TABLE audit.versions;
             UPDATE audit.versions SET content = replace(content, 'permit', 'forbid') WHERE kind = 'policies'",
        )
        .await
        .unwrap();
    let report = checked(&database).await;
    assert!(!report.right);
    assert_eq!(report.versions.len(), 1, "{:#?}", report.versions);
    assert_eq!(report.versions[0].kind.as_deref(), Some("policies"));
    owner.execute("DELETE FROM audit.versions").await.unwrap();
    assert!(!checked(&database).await.versions.is_empty());
}

#[tokio::test]
async fn a_command_without_the_gateways_key_does_nothing() {
    let world = world().await;
    let elsewhere = home(&world.database).join("elsewhere.key");
    let other = signing::open(&elsewhere, "toolgate").unwrap();
    let ring = Keyring::new(&Secret::new(MASTER)).unwrap();
    let role = options("toolgate_gateway", &world.database);
    let count = "SELECT count(*) FROM toolgate.keys";
    let mut owner = connect("superuser", &world.database).await;
    let before: i64 = sqlx::query_scalar(count)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    let made = issuing::issue(&role, &other, &ring, KeyKind::Agent, "support-bot", None).await;
    let why = made.unwrap_err().to_string();
    assert!(why.contains("the records name"), "{why}");
    let after: i64 = sqlx::query_scalar(count)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(before, after);
    assert!(checked(&world.database).await.right);
    world.gateway.stop().await;
}
