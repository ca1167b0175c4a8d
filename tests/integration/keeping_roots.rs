//! What is left of a chain whose beginning was dropped is still held against the checkpoints that were kept, and the keys that went
//! with a month still vouch for those that followed them.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use toolgate::{
    audit::{
        keeping::{self, Manifest},
        verify::{Fault, Problem, Report},
    },
    checkpoint::{Checkpoint, Frontier, Handover, SigningKey, VerifierKey},
    clock::Timestamp,
    demo::desk,
    entry::{Entry, Kind},
    secrets, signing,
};

use crate::{
    checkpoints::{agrees, check, checkpoints, file, key_file, of},
    keeping::{Old, Scratch, Writing, calls, month, months, started},
    support::{Setup, World, new_database, options, send},
};

/// Two starts: the first lived in the month nine ago only, the second in that and the two after it. The key was replaced in the
/// second of these. A checkpoint was kept of every size.
struct Log {
    old: Old,
    first: SigningKey,
    kept: PathBuf,
    /// How many entries the first start has.
    short: u64,
    /// The numbers of the second start's last entries in the three months.
    ends: [u64; 3],
    /// The trees of the second start.
    trees: Vec<Frontier>,
}

fn names(detail: Value) -> Entry {
    Entry {
        detail: Some(detail),
        ..Entry::new(Kind::SigningKeyChanged)
    }
}

fn number(seq: i64) -> u64 {
    u64::try_from(seq).unwrap()
}

/// `proved`: whether the first key has signed over to the second.
async fn log(proved: bool) -> Log {
    let database = new_database().await;
    let first = signing::open(&key_file(&database), "toolgate").unwrap().key;
    signing::rotate(&key_file(&database), "toolgate").unwrap();
    let second = signing::load(&key_file(&database)).unwrap().key;
    let mut owner = PgConnection::connect_with(&options("toolgate_owner", &database))
        .await
        .unwrap();
    months(&mut owner).await;
    let (mut short, mut long) = (Writing::begun_in(month(9)), Writing::begun_in(month(9)));
    let mut notes = String::new();
    short
        .write(
            &mut owner,
            month(9),
            vec![
                started(&[]),
                names(json!({"new": first.verifier().to_string()})),
            ],
        )
        .await;
    for _ in 0..2 {
        short.write(&mut owner, month(9), calls()).await;
    }
    long.write(&mut owner, month(9), vec![started(&[short.end()])])
        .await;
    let mut ends = [0; 3];
    long.write(&mut owner, month(9), calls()).await;
    long.write(&mut owner, month(9), calls()).await;
    ends[0] = number(long.seq);
    long.write(&mut owner, month(8), calls()).await;
    let mut detail = json!({
        "old": first.verifier().to_string(), "new": second.verifier().to_string(),
    });
    if proved {
        detail["handover"] = json!(Handover::sign(&first, &second).note());
    }
    long.write(&mut owner, month(8), vec![names(detail)]).await;
    let changed = number(long.seq);
    long.write(&mut owner, month(8), calls()).await;
    long.write(&mut owner, month(8), calls()).await;
    ends[1] = number(long.seq);
    for _ in 0..3 {
        long.write(&mut owner, month(7), calls()).await;
    }
    ends[2] = number(long.seq);
    for (writing, at) in [(&short, month(9)), (&long, month(7))] {
        for tree in &writing.trees {
            let is_new = writing.instance == long.instance && tree.size() >= changed;
            let checkpoint = Checkpoint {
                origin: Checkpoint::origin_of("toolgate", writing.instance.as_str()),
                size: tree.size(),
                root: tree.root(),
            };
            notes.push_str(&checkpoint.signed(if is_new { &second } else { &first }));
            notes.push('\n');
        }
        sqlx::query("INSERT INTO toolgate.instances VALUES ($1, $2, $2)")
            .bind(writing.instance.as_str())
            .bind(at.begins())
            .execute(&mut owner)
            .await
            .unwrap();
    }
    Log {
        kept: file(&database, "kept", notes),
        old: Old {
            database,
            first: short.instance.to_string(),
            second: long.instance.to_string(),
        },
        first,
        short: number(short.seq),
        ends,
        trees: long.trees,
    }
}

impl Log {
    fn keys(&self) -> [VerifierKey; 1] {
        [self.first.verifier().clone()]
    }

    /// What is found with all that was kept; the other program finds the same.
    async fn check(&self) -> Report {
        let report = check(&self.old.database, &[&self.kept], &self.keys()).await;
        agrees(&self.old.database, &report, &[&self.kept], &self.keys());
        report
    }

    async fn drop(&self, ago: u32, scratch: &Scratch) -> Manifest {
        let export = scratch.file(&ago.to_string());
        let manifest = self.old.export(month(ago), &export).await;
        self.old.drop_month(month(ago), &export).await.unwrap();
        manifest
    }

    fn all(&self) -> u64 {
        self.short + self.ends[2]
    }
}

fn right(report: &Report) {
    assert!(report.right, "{report:#?}");
}

#[tokio::test]
async fn checkpoints_before_at_and_after_the_cut_are_held_against_what_is_left() {
    let log = log(true).await;
    let scratch = Scratch::new();
    let report = log.check().await;
    right(&report);
    assert_eq!(report.checkpoints.fit, log.all());

    log.drop(9, &scratch).await;
    let report = log.check().await;
    right(&report);
    // Of each the last one in the month is the tree that its record tells.
    let lost = log.short - 1 + log.ends[0] - 1;
    assert_eq!(report.checkpoints.dropped, lost, "{report:#?}");
    assert_eq!(report.checkpoints.fit, log.all() - lost);
    assert_eq!(of(&report, &log.old.second).checkpointed, Some(log.ends[2]));

    // The key that signs now was named in the month that goes next: the first key still leads to it.
    log.drop(8, &scratch).await;
    let report = log.check().await;
    right(&report);
    let lost = log.short - 1 + log.ends[1] - 2;
    assert_eq!(report.checkpoints.dropped, lost, "{report:#?}");
    assert_eq!(report.checkpoints.fit, log.all() - lost);
    assert_eq!(report.keys.len(), 2);
    let unasked = check(&log.old.database, &[&log.kept], &[]).await;
    right(&unasked);

    // A gateway that starts now knows from the record which key signs, and does not name it again.
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let world = World::start(Setup::shipped(), log.old.database.clone(), Arc::new(desk)).await;
    send(world.refund(None, 100)).await.expect(201);
    world.gateway.stop().await;
    let mut owner = log.old.owner().await;
    let named: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit.entries WHERE kind = 'signing_key_changed'")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    assert_eq!(named, 0);
    let own = checkpoints(&log.old.database);
    let files = [log.kept.as_path(), own.as_path()];
    let report = check(&log.old.database, &files, &log.keys()).await;
    right(&report);
    agrees(&log.old.database, &report, &files, &log.keys());

    // Nothing is left of either start: what is known of them is no less.
    log.drop(7, &scratch).await;
    let report = log.check().await;
    right(&report);
    let lost = log.short - 1 + log.ends[2] - 3;
    assert_eq!(report.checkpoints.dropped, lost, "{report:#?}");
    // One more than there ever were, rightly signed.
    let mut tree = log.trees.last().unwrap().clone();
    tree.push(&[7; 32]);
    let second = signing::load(&key_file(&log.old.database)).unwrap().key;
    let beyond = Checkpoint {
        origin: Checkpoint::origin_of("toolgate", &log.old.second),
        size: tree.size(),
        root: tree.root(),
    };
    let beyond = file(&log.old.database, "beyond", beyond.signed(&second));
    let report = check(&log.old.database, &[&beyond], &log.keys()).await;
    assert_eq!(report.checkpoints.refused[0].problem, Problem::BeyondEnd);
    agrees(&log.old.database, &report, &[&beyond], &log.keys());
}

/// Makes the record of the drop anew with another detail, as whoever holds the key can before the next start of the gateway.
async fn forge(log: &Log, detail: &Value) {
    let (by, at): (String, Timestamp) = sqlx::query_as(
        "SELECT instance_id, recorded_at FROM audit.entries WHERE kind = 'partition_dropped'",
    )
    .fetch_one(&mut log.old.owner().await)
    .await
    .unwrap();
    let by = by.parse().unwrap();
    log.old.tell_anew(&by, at, detail.clone()).await;
}

#[tokio::test]
async fn a_forged_tree_is_a_root_that_differs_and_an_untrue_record_tells_nothing() {
    let log = log(true).await;
    let scratch = Scratch::new();
    log.drop(9, &scratch).await;
    let mut owner = log.old.owner().await;
    let truth: Value =
        sqlx::query_scalar("SELECT detail FROM audit.entries WHERE kind = 'partition_dropped'")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    let at = usize::from(truth["instances"][1]["instance"] == log.old.second.as_str());
    let peaks = truth["instances"][at]["tree"].as_array().unwrap().len();
    for peak in 0..peaks {
        let mut forged = truth.clone();
        forged["instances"][at]["tree"][peak] = json!("ab".repeat(32));
        forge(&log, &forged).await;
        // Only what was kept elsewhere shows it.
        right(&check(&log.old.database, &[], &[]).await);
        let report = log.check().await;
        let differ = report
            .checkpoints
            .refused
            .iter()
            .filter(|one| one.problem == Problem::RootDiffers);
        // The one at the cut and all behind it.
        assert_eq!(
            differ.count() as u64,
            log.ends[2] - log.ends[0] + 1,
            "{report:#?}"
        );
        let wrong = of(&report, &log.old.second).wrong.as_ref().unwrap();
        assert_eq!(wrong.fault, Fault::Rewritten, "{wrong:?}");
    }
    // A tree that can be none is no truth at all.
    let mut forged = truth.clone();
    forged["instances"][at]["tree"]
        .as_array_mut()
        .unwrap()
        .push(json!("ab".repeat(32)));
    forge(&log, &forged).await;
    let report = log.check().await;
    let wrong = of(&report, &log.old.second).wrong.as_ref().unwrap();
    assert_eq!((wrong.seq, wrong.fault), (1, Fault::Missing), "{wrong:?}");

    forge(&log, &truth).await;
    right(&log.check().await);
    // The truth in an entry that was changed is not believed: nothing lies in what was dropped then, it is missing.
    owner
        .execute("SET session_replication_role = replica; UPDATE audit.entries SET words = 'x' WHERE kind = 'partition_dropped'")
        .await
        .unwrap();
    let report = log.check().await;
    assert!(!report.right);
    assert_eq!(report.checkpoints.dropped, 0, "{report:#?}");
    let wrong = of(&report, &log.old.second).wrong.as_ref().unwrap();
    assert_eq!((wrong.seq, wrong.fault), (1, Fault::Missing), "{wrong:?}");
    let unknown = report
        .checkpoints
        .refused
        .iter()
        .filter(|one| one.problem == Problem::UnknownInstance);
    assert_eq!(unknown.count() as u64, log.short);
}

#[tokio::test]
async fn a_key_that_nothing_proved_stays_so_when_its_month_is_dropped() {
    let log = log(false).await;
    let scratch = Scratch::new();
    let report = log.check().await;
    let wrong = of(&report, &log.old.second).wrong.as_ref().unwrap();
    assert_eq!(wrong.fault, Fault::UnprovedKey, "{wrong:?}");
    // Nor does it sign a drop that is believed: what went under it is missing.
    for ago in [9, 8] {
        log.drop(ago, &scratch).await;
        let report = log.check().await;
        let mut wrong = report.instances.iter().filter_map(|one| one.wrong.as_ref());
        assert!(
            wrong.any(|wrong| wrong.fault == Fault::UnprovedKey),
            "{report:#?}"
        );
        let wrong = of(&report, &log.old.second).wrong.as_ref().unwrap();
        assert_eq!(wrong.fault, Fault::Missing, "{ago}: {wrong:?}");
    }
    let report = log.check().await;
    assert!(
        report
            .checkpoints
            .refused
            .iter()
            .any(|one| one.problem == Problem::UntrustedKey)
    );
    log.drop(7, &scratch).await;
    let report = log.check().await;
    let mut wrong = report.instances.iter().filter_map(|one| one.wrong.as_ref());
    assert!(
        wrong.any(|wrong| wrong.fault == Fault::UnprovedKey),
        "{report:#?}"
    );
    // Nothing of it is left, and nobody who is believed says that it was dropped.
    let wrong = of(&report, &log.old.second).wrong.as_ref().unwrap();
    assert_eq!(wrong.fault, Fault::Unlinked, "{wrong:?}");
}

/// The record of a drop goes with its own month: trees and keys are told again.
/// The change of the key stands in no entry any more, nor the record that told of it: only what that told is told again.
#[tokio::test]
async fn a_key_outlives_the_record_that_told_of_its_change() {
    let log = log(true).await;
    let scratch = Scratch::new();
    log.drop(9, &scratch).await;
    log.drop(8, &scratch).await;
    log.old.date_back(month(7)).await;
    log.drop(7, &scratch).await;
    let report = log.check().await;
    right(&report);
    assert_eq!(report.keys.len(), 2, "{report:#?}");
    assert_eq!(report.checkpoints.wrong, 0, "{report:#?}");
}

#[tokio::test]
async fn trees_and_keys_outlive_the_record_that_told_of_them() {
    let log = log(true).await;
    let scratch = Scratch::new();
    log.drop(9, &scratch).await;
    log.old.date_back(month(7)).await;
    for ago in [8, 7] {
        log.drop(ago, &scratch).await;
        let report = log.check().await;
        right(&report);
        assert_eq!(report.keys.len(), 2, "{ago}");
    }
    // The end of each start in each month, as its own record told it and as it was told again.
    let report = log.check().await;
    assert_eq!(report.checkpoints.fit, 4, "{report:#?}");
    assert_eq!(report.checkpoints.dropped, log.all() - 4);
}

fn told(tree: &Frontier) -> Vec<String> {
    tree.peaks().iter().map(|peak| secrets::hex(peak)).collect()
}

#[tokio::test]
async fn an_export_holds_the_trees_at_its_ends_and_the_keys_it_names() {
    let log = log(true).await;
    let scratch = Scratch::new();
    let (before, after) = (scratch.file("before"), scratch.file("after"));
    let manifest = log.old.export(month(8), &before).await;
    let part = &manifest.contents.instances[0];
    let tree = |size: u64| told(&log.trees[usize::try_from(size - 1).unwrap()]);
    assert_eq!(part.tree_before, tree(log.ends[0]));
    assert_eq!(part.tree, tree(log.ends[1]));
    assert_eq!(manifest.contents.signing_keys.len(), 1);
    keeping::check(&before, |_| {}).unwrap();
    // What the earlier entries gave, the record of their drop gives as well.
    log.drop(9, &scratch).await;
    let again = log.old.export(month(8), &after).await;
    assert_eq!(again.contents, manifest.contents);
    keeping::check(&after, |_| {}).unwrap();

    let path = keeping::manifest_path(&after);
    let text: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let forged = json!("ab".repeat(32));
    for pointer in [
        "/contents/instances/0/tree/0",
        "/contents/instances/0/tree_before/0",
        "/contents/signing_keys/0/detail/handover",
    ] {
        let mut changed = text.clone();
        *changed.pointer_mut(pointer).unwrap() = forged.clone();
        std::fs::write(&path, changed.to_string()).unwrap();
        assert!(keeping::check(&after, |_| {}).is_err(), "{pointer}");
    }
    std::fs::write(&path, text.to_string()).unwrap();
    keeping::check(&after, |_| {}).unwrap();
}
