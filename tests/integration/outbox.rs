//! What is cleared out of the outbox, and by whom: old events with their deliveries, and nothing that somebody still waits for.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use toolgate::demo::desk;

use crate::{
    records::connect,
    support::{Setup, World, new_database},
};

/// Adds an event of so many hours ago, and its deliveries: destination, state, and how many hours ago it began to wait.
async fn event(
    superuser: &mut PgConnection,
    name: &str,
    hours: i32,
    deliveries: &[(&str, &str, i32)],
) {
    let seq: i64 = sqlx::query_scalar(
        "INSERT INTO toolgate.outbox (type, subject, data, occurred_at, spread_at)
         VALUES ('halt.pulled', $1, '{}', now() - make_interval(hours => $2), now()) RETURNING seq",
    )
    .bind(name)
    .bind(hours)
    .fetch_one(&mut *superuser)
    .await
    .unwrap();
    for (destination, state, waits) in deliveries {
        sqlx::query(
            "INSERT INTO toolgate.deliveries (delivery_id, destination, seq, subject, state, queued_at, ended_at, last_error)
             VALUES ($1 || $2, $2, $3, $1, $4, now() - make_interval(hours => $5),
                     CASE $4 WHEN 'pending' THEN NULL ELSE now() END, 'x')",
        )
        .bind(name)
        .bind(destination)
        .bind(seq)
        .bind(state)
        .bind(waits)
        .execute(&mut *superuser)
        .await
        .unwrap();
    }
}

async fn left(superuser: &mut PgConnection, table: &str) -> Vec<String> {
    let query = format!("SELECT subject FROM toolgate.{table} ORDER BY seq");
    sqlx::query(AssertSqlSafe(query))
        .fetch_all(superuser)
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

async fn clear(gateway: &mut PgConnection, days: i32) -> i64 {
    sqlx::query_scalar("SELECT toolgate.clear_outbox($1)")
        .bind(days)
        .fetch_one(gateway)
        .await
        .unwrap()
}

const DAY: i32 = 24;

async fn some(superuser: &mut PgConnection) {
    let old = 15 * DAY;
    event(superuser, "untold", old, &[]).await;
    event(superuser, "delivered", old, &[("a", "delivered", old)]).await;
    event(superuser, "dead", old, &[("a", "dead", old)]).await;
    event(superuser, "waits long", old, &[("a", "pending", old)]).await;
    let again = [("a", "delivered", old), ("b", "pending", 1)];
    event(superuser, "asked for again", old, &again).await;
    let young = 14 * DAY - 1;
    event(superuser, "young", young, &[("a", "dead", young)]).await;
    event(superuser, "two hours", 2, &[]).await;
    // Its number comes last, so that the next one goes on from it.
    event(superuser, "newest", old, &[("a", "delivered", old)]).await;
}

#[tokio::test]
async fn old_events_go_with_their_deliveries_and_no_others() {
    let database = new_database().await;
    let mut superuser = connect("superuser", &database).await;
    let mut gateway = connect("toolgate_gateway", &database).await;
    some(&mut superuser).await;
    assert_eq!(clear(&mut gateway, 14).await, 4);
    assert_eq!(
        left(&mut superuser, "outbox").await,
        ["asked for again", "young", "two hours", "newest"]
    );
    assert_eq!(
        left(&mut superuser, "deliveries").await,
        ["asked for again", "asked for again", "young", "newest"]
    );
    assert_eq!(clear(&mut gateway, 14).await, 0);
    // However little is asked to be kept, a day is.
    for days in [0, -5] {
        clear(&mut gateway, days).await;
        assert_eq!(
            left(&mut superuser, "outbox").await,
            ["asked for again", "two hours", "newest"]
        );
    }
    // No more than so many at once, the oldest first.
    for number in 0..1_004 {
        event(&mut superuser, &number.to_string(), 30 * DAY, &[]).await;
    }
    assert_eq!(clear(&mut gateway, 14).await, 1_000);
    // The one that was the newest before was the first of them.
    assert_eq!(
        left(&mut superuser, "outbox").await,
        [
            "asked for again",
            "two hours",
            "999",
            "1000",
            "1001",
            "1002",
            "1003"
        ]
    );
    assert_eq!(clear(&mut gateway, 14).await, 4);
    // By itself the gateway's role deletes nothing.
    for table in ["outbox", "deliveries"] {
        let delete = format!("DELETE FROM toolgate.{table}");
        let refused = sqlx::query(AssertSqlSafe(delete))
            .execute(&mut gateway)
            .await;
        assert!(refused.is_err(), "{table}");
    }
}

#[tokio::test]
async fn the_gateway_clears_what_is_older_than_fourteen_days() {
    let database = new_database().await;
    let mut superuser = connect("superuser", &database).await;
    some(&mut superuser).await;
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let _world = World::start(Setup::shipped(), database.clone(), Arc::new(desk)).await;
    for _ in 0..300 {
        let left = left(&mut superuser, "outbox").await;
        if left == ["asked for again", "young", "two hours", "newest"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", left(&mut superuser, "outbox").await);
}
