//! The clock of the gateway's machine is set forwards and back while calls go on, under the real program, whose clock libfaketime
//! turns. Whatever it says, entries keep their order, nothing is missing, and every chain is right.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use toolgate::{demo::desk, secrets::Secret};

use crate::{
    checkpoints,
    crash::{Place, Running, until},
    support::{MASTER, new_database, options, send, url},
};

/// Debian's package `faketime`.
fn library() -> PathBuf {
    let by_machine = std::fs::read_dir("/usr/lib").unwrap();
    by_machine
        .filter_map(|entry| {
            let path = entry.ok()?.path().join("faketime/libfaketime.so.1");
            path.exists().then_some(path)
        })
        .next()
        .expect("tests/run installs faketime")
}

struct Clock(PathBuf);

impl Clock {
    /// From now on the program's clock is so far ahead of this test's. Written whole, because it is read at any moment.
    fn set(&self, hours: u32) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("+{}", hours * 3_600)).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }
}

fn write_config(place: &Place, database: &str) {
    place.write_config();
    let text = std::fs::read_to_string(place.config()).unwrap();
    let built_in = "database:\n  built_in:\n    home: ${env:TOOLGATE_HOME:-./.toolgate}\n";
    assert!(text.contains(built_in));
    let external = format!(
        "database:\n  external:\n    url: {}\n",
        url("toolgate_gateway", database)
    );
    std::fs::write(place.config(), text.replace(built_in, &external)).unwrap();
}

/// The hour in which each entry of an instance was recorded, counted from this test's, in the order of numbers.
async fn hours(auditor: &mut PgConnection, instance: &str) -> Vec<i64> {
    sqlx::query(
        "SELECT (extract(epoch FROM recorded_at - now()) / 3600)::bigint FROM audit.entries
         WHERE instance_id = $1 ORDER BY seq",
    )
    .bind(instance)
    .fetch_all(auditor)
    .await
    .unwrap()
    .iter()
    .map(|row| row.get(0))
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_while_calls_go_on_breaks_no_chain() {
    let database = new_database().await;
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let place = Place::new();
    write_config(&place, &database);
    // Always ahead of the real time: for the months to come there are partitions, and for the last one there may be none.
    let clock = Clock(place.path.join("clock"));
    clock.set(3);
    let variables = [
        ("TOOLGATE_HOME", place.home().display().to_string()),
        ("TOOLGATE_MASTER_SECRET", MASTER.to_owned()),
        ("DESK_URL", format!("http://{}", desk.address)),
        ("DESK_TOKEN", "desk-token".to_owned()),
        ("LD_PRELOAD", library().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.0.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let config = place.config();
    let serve = ["serve", "--config", config.to_str().unwrap()];
    let mut running = Running::start(&serve, &variables).await;
    // By the same clock.
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .args(["keys", "create", "--agent", "support-bot", "--config"])
        .arg(place.config())
        .envs(variables.clone())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let key = Secret::new(String::from_utf8(made.stdout).unwrap().trim());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let refund = |running: &Running, amount: u32| {
        let url = format!("http://{}/desk/refunds", running.agents);
        let body = json!({"customer": "c_1001", "amount_cents": amount, "currency": "EUR"});
        let request = http.request(Method::POST, url).bearer_auth(key.expose());
        request.json(&body)
    };
    until("the key is taken up", async || {
        send(refund(&running, 1)).await.status == 201
    })
    .await;

    // Calls go on all the time, so that jumps fall between any two steps of some.
    let over = Arc::new(AtomicBool::new(false));
    let going_on: Vec<_> = (0..4)
        .map(|_| {
            let (over, request) = (Arc::clone(&over), refund(&running, 2));
            tokio::spawn(async move {
                let mut made = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    let again = request.try_clone().unwrap();
                    send(again).await.expect(201);
                    made += 1;
                }
                made
            })
        })
        .collect();
    for ahead in [5, 2, 30, 1, 4] {
        clock.set(ahead);
        tokio::time::sleep(Duration::from_millis(200)).await;
        send(refund(&running, 3)).await.expect(201);
        // Each another one: the same again would be told how the first stands.
        send(refund(&running, 25_000 + ahead))
            .await
            .problem(403, "approval_required");
    }
    over.store(true, Ordering::Relaxed);
    let mut made = 0;
    for calls in going_on {
        made += calls.await.unwrap();
    }
    assert!(made >= 20, "{made}");
    // The next start begins before its predecessor's last entries.
    clock.set(2);
    running.terminate();
    assert!(running.ended().await.success());
    let mut running = Running::start(&serve, &variables).await;
    send(refund(&running, 4)).await.expect(201);
    running.terminate();
    assert!(running.ended().await.success());

    let report = checkpoints::check(&database, &[], &[]).await;
    assert!(report.right, "{report:#?}");
    crate::tampering::other(&database)
        .iter()
        .for_each(|one| assert_eq!(one["first_wrong"], Value::Null, "{one}"));
    let mut auditor = PgConnection::connect_with(&options("toolgate_auditor", &database))
        .await
        .unwrap();
    let instances: Vec<String> = sqlx::query_scalar(
        // By their number of entries: the second has few.
        "SELECT instance_id FROM audit.entries GROUP BY 1 HAVING bool_or(kind = 'gateway_started') ORDER BY count(*) DESC",
    )
    .fetch_all(&mut auditor)
    .await
    .unwrap();
    assert_eq!(instances.len(), 2);
    let first = hours(&mut auditor, &instances[0]).await;
    assert!(first.is_sorted(), "time falls within an instance");
    // It was set forwards, which is to be seen, and back, which is not to be seen.
    assert_eq!((first.first(), first.last()), (Some(&3), Some(&30)));
    let second = hours(&mut auditor, &instances[1]).await;
    // A moment after the first began: chains stand in the order in which they were begun, whatever the clock said.
    assert_eq!((second.first(), second.is_sorted()), (Some(&3), true));
    assert!(instances[0] < instances[1]);
    let calls = sqlx::query(
        "SELECT count(*), count(*) FILTER (WHERE outcome = 'completed'), count(*) FILTER (WHERE decision = 'park')
         FROM audit.calls WHERE agent IS NOT NULL",
    )
    .fetch_one(&mut auditor)
    .await
    .unwrap();
    let (all, completed, parked): (i64, i64, i64) = (calls.get(0), calls.get(1), calls.get(2));
    assert_eq!(
        (all - completed, parked),
        (5, 5),
        "none is lost or in doubt"
    );
    assert_eq!(
        u64::try_from(completed).unwrap(),
        made + 1 + 5 + 1,
        "each is recorded"
    );
}
