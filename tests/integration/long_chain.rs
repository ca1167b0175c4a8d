//! A chain that is longer than one stretch of 65,536 entries: recorded by the real writer, signed and checked over the seam. It is
//! short in time because the entries are handed over hundreds at once and share their commits.

use std::{path::Path, sync::Arc, time::Duration};

use futures::StreamExt as _;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use toolgate::{
    audit::{
        Checkpoints, Recorder,
        verify::{Fault, Problem},
    },
    demo::desk,
    entry::{Entry, Kind, chain},
    redaction::Redactor,
    secrets::{Keyring, Secret},
    signing,
    sinks::Sinks,
    store::audit_log,
};

use crate::{
    checkpoints::{agrees, check, file, notes, of, parsed, vkey},
    support::{self, MASTER, Setup, new_database, options},
};

const STRETCH: i64 = 65_536;

async fn record(recorder: &Recorder, count: i64) {
    let noted = (0..count).map(|_| recorder.note(Entry::new(Kind::RunEnded)));
    let lost = futures::stream::iter(noted)
        .buffer_unordered(1_024)
        .filter(|noted| std::future::ready(noted.is_err()))
        .count()
        .await;
    assert_eq!(lost, 0);
}

/// Until there is a checkpoint of exactly so many entries.
async fn signed(database: &str, size: i64) {
    for _ in 0..500 {
        let has = notes(database)
            .iter()
            .any(|note| i64::try_from(parsed(note).size) == Ok(size));
        if has {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no checkpoint of {size} entries");
}

/// Checkpoints at the last entry of the first stretch, at the first of the second, and at the end.
async fn long_log() -> (String, String) {
    let database = new_database().await;
    let setup = Setup::shipped().config("every_seconds: 60", "every_seconds: 1");
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let (config, _) = support::load(&setup, &database, &desk).unwrap();
    let keys = Arc::new(Keyring::new(&Secret::new(MASTER)).unwrap());
    let redactor = Arc::new(Redactor::new(keys, config.limits.recorded));
    let settings = &config.checkpoints;
    let recorder = Recorder::start(
        options("toolgate_gateway", &database),
        Duration::from_secs(60),
        redactor,
        Checkpoints {
            held: signing::open(&settings.key_file, &settings.installation).unwrap(),
            every_entries: 30_000,
            every: settings.every,
            sinks: Sinks::start(&settings.sinks).unwrap(),
        },
    )
    .await
    .unwrap();
    let instance = recorder.instance().to_string();
    let mut auditor = PgConnection::connect_with(&options("toolgate_auditor", &database))
        .await
        .unwrap();
    // What a start says of itself comes first.
    let begun: i64 =
        sqlx::query_scalar("SELECT max(seq) FROM audit.entries WHERE instance_id = $1")
            .bind(&instance)
            .fetch_one(&mut auditor)
            .await
            .unwrap();
    record(&recorder, STRETCH - begun).await;
    signed(&database, STRETCH).await;
    record(&recorder, 1).await;
    signed(&database, STRETCH + 1).await;
    record(&recorder, 40).await;
    recorder.close().await;
    recorder.sinks().finish(Duration::from_secs(10)).await;
    signed(&database, STRETCH + 41).await;
    (database, instance)
}

/// Makes the hashes from an entry on anew, as somebody does who knows how.
async fn rehash(owner: &mut PgConnection, instance: &str, from: i64) {
    use futures::TryStreamExt as _;
    let rows: Vec<_> = audit_log::rows(owner, instance, from - 1, i64::MAX)
        .try_collect()
        .await
        .unwrap();
    let mut head: chain::Hash = rows[0].hash.clone().unwrap().try_into().unwrap();
    for stored in &rows[1..] {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_over_the_seam_of_two_stretches_is_right_and_each_change_at_it_is_named() {
    let (database, instance) = long_log().await;
    let keys = [vkey(&database)];
    let path = crate::checkpoints::checkpoints(&database);
    let files: [&Path; 1] = [&path];
    let report = check(&database, &files, &keys).await;
    assert!(report.right, "{report:#?}");
    let one = of(&report, &instance);
    assert_eq!((one.entries, one.last), (65_577, STRETCH + 41));
    assert_eq!(one.checkpointed, Some(65_577));
    assert_eq!(report.checkpoints.fit, report.checkpoints.read);
    agrees(&database, &report, &files, &keys);

    let mut owner = PgConnection::connect_with(&options("superuser", &database))
        .await
        .unwrap();
    owner
        .execute("SET session_replication_role = replica")
        .await
        .unwrap();
    // By itself: the last entry of the first stretch, and the first of the second.
    for seq in [STRETCH, STRETCH + 1] {
        let change = |words: &str| {
            AssertSqlSafe(format!(
                "UPDATE audit.entries SET words = {words} WHERE instance_id = '{instance}' AND seq = {seq}"
            ))
        };
        owner.execute(change("'forged'")).await.unwrap();
        let report = check(&database, &[], &[]).await;
        let wrong = of(&report, &instance).wrong.as_ref().unwrap();
        assert_eq!((wrong.seq, wrong.fault), (seq, Fault::Changed), "{wrong:?}");
        owner.execute(change("NULL")).await.unwrap();
    }
    // With all hashes behind it made anew, so that only the roots tell: those over both stretches.
    owner
        .execute(AssertSqlSafe(format!(
            "UPDATE audit.entries SET words = 'forged' WHERE instance_id = '{instance}' AND seq = {}",
            STRETCH + 1
        )))
        .await
        .unwrap();
    rehash(&mut owner, &instance, STRETCH + 1).await;
    assert!(check(&database, &[], &[]).await.right);
    let report = check(&database, &files, &keys).await;
    let wrong = of(&report, &instance).wrong.as_ref().unwrap();
    assert_eq!(
        (wrong.seq, wrong.until, wrong.fault),
        (STRETCH + 1, Some(STRETCH + 1), Fault::Rewritten),
        "{wrong:?}"
    );
    assert!(
        report
            .checkpoints
            .refused
            .iter()
            .all(|one| one.problem == Problem::RootDiffers)
    );
    assert_eq!(report.checkpoints.wrong, 2, "{report:#?}");
    // The first stretch alone is as it was.
    let kept: Vec<String> = notes(&database)
        .into_iter()
        .filter(|note| i64::try_from(parsed(note).size).unwrap() <= STRETCH)
        .collect();
    let first = file(&database, "first", kept.concat());
    assert!(check(&database, &[&first], &keys).await.right);
    // Cut at the seam.
    owner
        .execute(AssertSqlSafe(format!(
            "DELETE FROM audit.entries WHERE instance_id = '{instance}' AND seq > {STRETCH}"
        )))
        .await
        .unwrap();
    let report = check(&database, &files, &keys).await;
    let wrong = of(&report, &instance).wrong.as_ref().unwrap();
    assert_eq!(
        (wrong.seq, wrong.fault),
        (STRETCH + 1, Fault::TailCut),
        "{wrong:?}"
    );
}
