//! The records themselves: who may read and write them, what the tables refuse, and where rows land. What the views tell,
//! what must never stand in them, and what becomes of a record when things break, is in the modules below.

use chrono::{Datelike as _, Months};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::support::{World, new_database, options};

mod calls;
mod faults;
mod large;
mod lost;
mod planted;

pub(crate) async fn connect(role: &str, database: &str) -> PgConnection {
    use sqlx::Connection as _;
    PgConnection::connect_with(&options(role, database))
        .await
        .unwrap()
}

/// The SQLSTATE of the refusal; `None` where the statement was carried out.
async fn refusal(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let result = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(connection)
        .await;
    match result {
        Ok(_) => None,
        Err(sqlx::Error::Database(error)) => Some(error.code().unwrap_or_default().into_owned()),
        Err(error) => panic!("{statement}: {error}"),
    }
}

pub(crate) async fn texts(connection: &mut PgConnection, query: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
        .fetch_all(connection)
        .await
        .unwrap()
}

async fn tables(connection: &mut PgConnection, schema: &str) -> Vec<String> {
    texts(
        connection,
        &format!(
            "SELECT format('%I.%I', schemaname, name) FROM (
                 SELECT schemaname::text, tablename::text AS name FROM pg_tables
                 UNION ALL SELECT schemaname::text, viewname::text FROM pg_views) AS all_of_them
             WHERE schemaname = '{schema}' ORDER BY 1"
        ),
    )
    .await
}

/// Insufficient privilege.
const FORBIDDEN: &str = "42501";

#[tokio::test]
async fn the_auditor_reads_everything_and_changes_nothing() {
    let world = World::shipped().await;
    crate::support::send(world.refund(None, 100))
        .await
        .expect(201);
    let mut superuser = world.connect("superuser").await;
    let mut auditor = world.connect("toolgate_auditor").await;
    let readable = tables(&mut superuser, "audit").await;
    assert!(readable.len() >= 10, "{readable:?}");
    for table in &readable {
        let read = format!("SELECT * FROM {table}");
        assert_eq!(refusal(&mut auditor, &read).await, None, "{read}");
    }
    let mut refused: Vec<String> = [
        "INSERT INTO audit.versions (digest, kind, name, content) VALUES ('x', 'contract', 'x', 'x')",
        "INSERT INTO audit.entries (instance_id, seq, recorded_at, kind) VALUES ('x', 1, now(), 'gateway_started')",
        "COPY audit.versions FROM STDIN",
        "SELECT audit.ensure_partitions(3)",
        "SELECT toolgate.schema_version()",
        "CREATE TABLE audit.mine (a integer)",
        "CREATE TABLE public.mine (a integer)",
        "CREATE TABLE toolgate.mine (a integer)",
        "CREATE TEMPORARY TABLE mine (a integer)",
        "CREATE VIEW audit.mine AS SELECT 1",
        "CREATE FUNCTION audit.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "SET ROLE toolgate_gateway",
        "SET ROLE toolgate_owner",
        "SET session_replication_role = replica",
        "SELECT * FROM audit.entries FOR UPDATE",
        "ALTER VIEW audit.calls RENAME TO other",
        "ALTER TABLE audit.entries DISABLE TRIGGER ALL",
        "COMMENT ON VIEW audit.calls IS 'x'",
        "LOCK TABLE audit.entries IN ACCESS EXCLUSIVE MODE",
    ]
    .map(str::to_owned)
    .to_vec();
    for table in &readable {
        refused.push(format!("DELETE FROM {table}"));
        refused.push(format!("TRUNCATE {table}"));
    }
    for table in tables(&mut superuser, "toolgate").await {
        refused.push(format!("SELECT * FROM {table}"));
        refused.push(format!("DELETE FROM {table}"));
    }
    let mut carried_out = Vec::new();
    for statement in &refused {
        if refusal(&mut auditor, statement).await.is_none() {
            carried_out.push(statement);
        }
    }
    assert!(carried_out.is_empty(), "{carried_out:#?}");
}

#[tokio::test]
async fn the_gateways_role_appends_and_does_nothing_else_to_the_records() {
    let database = new_database().await;
    let mut gateway = connect("toolgate_gateway", &database).await;
    let started = "INSERT INTO audit.entries (instance_id, seq, recorded_at, kind, hash)
                   VALUES ('inst_1', 1, now(), 'gateway_started', sha256('one'))";
    assert_eq!(refusal(&mut gateway, started).await, None);
    let mut superuser = connect("superuser", &database).await;
    let mut refused = vec![
        "SET ROLE toolgate_owner".to_owned(),
        "SET session_replication_role = replica".to_owned(),
        "CREATE TABLE audit.mine (a integer)".to_owned(),
        "CREATE TABLE toolgate.mine (a integer)".to_owned(),
        "CREATE OR REPLACE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            .to_owned(),
        "DROP FUNCTION audit.refuse_change() CASCADE".to_owned(),
        "DROP SCHEMA audit CASCADE".to_owned(),
        "DROP VIEW audit.calls".to_owned(),
        "DROP TRIGGER entries_append_only ON audit.entries".to_owned(),
        "UPDATE audit.entries SET words = 'other'".to_owned(),
        "UPDATE audit.versions SET content = 'other'".to_owned(),
        "UPDATE toolgate.votes SET vote = 'approve'".to_owned(),
        "UPDATE toolgate.approval_tiers SET needed = 1".to_owned(),
        "SELECT * FROM migrations._sqlx_migrations".to_owned(),
    ];
    for table in texts(
        &mut superuser,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('audit', 'toolgate')",
    )
    .await
    {
        refused.push(format!("DELETE FROM {table}"));
        refused.push(format!("TRUNCATE {table} CASCADE"));
        refused.push(format!("DROP TABLE {table} CASCADE"));
        refused.push(format!("ALTER TABLE {table} DISABLE TRIGGER ALL"));
        if table.starts_with("audit.entries_") {
            // Partitions are reached through the parent alone.
            refused.push(format!("SELECT * FROM {table}"));
            refused.push(started.replace("audit.entries", &table));
        }
    }
    for statement in &refused {
        let code = refusal(&mut gateway, statement).await;
        assert_eq!(code.as_deref(), Some(FORBIDDEN), "{statement}");
    }
}

#[tokio::test]
async fn not_even_the_owner_changes_what_was_recorded() {
    let world = World::shipped().await;
    let mut owner = world.connect("toolgate_owner").await;
    let partitions = texts(
        &mut owner,
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit.entries'::regclass ORDER BY 1",
    )
    .await;
    let current = texts(
        &mut owner,
        "SELECT DISTINCT tableoid::regclass::text FROM audit.entries",
    )
    .await;
    assert_eq!(current.len(), 1);
    let mut refused = Vec::new();
    for table in ["audit.entries", "audit.versions", &current[0]] {
        let column = if table.contains("versions") {
            "name = 'x'"
        } else {
            "words = 'x'"
        };
        refused.push(format!("UPDATE {table} SET {column}"));
        refused.push(format!("DELETE FROM {table}"));
    }
    for table in partitions
        .iter()
        .map(String::as_str)
        .chain(["audit.entries", "audit.versions"])
    {
        refused.push(format!("TRUNCATE {table}"));
        refused.push(format!("TRUNCATE {table} CASCADE"));
    }
    for statement in &refused {
        let code = refusal(&mut owner, statement).await;
        assert_eq!(code.as_deref(), Some(FORBIDDEN), "{statement}");
    }
}

#[tokio::test]
async fn partitions_stand_ahead_and_each_row_lands_in_its_month() {
    let database = new_database().await;
    let mut owner = connect("toolgate_owner", &database).await;
    let mut gateway = connect("toolgate_gateway", &database).await;
    let this_month = toolgate::clock::now().date_naive().with_day(1).unwrap();
    let months: Vec<_> = (0..4)
        .map(|ahead| this_month.checked_add_months(Months::new(ahead)).unwrap())
        .collect();
    let expected: Vec<String> = months
        .iter()
        .map(|month| month.format("audit.entries_%Y_%m").to_string())
        .collect();
    let stand = "SELECT inhrelid::regclass::text FROM pg_inherits
                 WHERE inhparent = 'audit.entries'::regclass ORDER BY 1";
    assert_eq!(texts(&mut owner, stand).await, expected);
    for (ahead, made) in [(3, 0), (0, 0), (5, 2), (5, 0)] {
        let answer: i32 = sqlx::query_scalar("SELECT audit.ensure_partitions($1)")
            .bind(ahead)
            .fetch_one(&mut gateway)
            .await
            .unwrap();
        assert_eq!(answer, made, "{ahead} months ahead");
    }
    for wrong in [-1, 25] {
        let statement = format!("SELECT audit.ensure_partitions({wrong})");
        assert!(refusal(&mut gateway, &statement).await.is_some());
    }
    for (seq, (month, partition)) in (1..).zip(months.iter().zip(&expected)) {
        let next = month.checked_add_months(Months::new(1)).unwrap();
        for at in [
            format!("'{month} 00:00:00+00'"),
            format!("'{next} 00:00:00+00'::timestamptz - interval '1 microsecond'"),
        ] {
            let statement = format!(
                "INSERT INTO audit.entries (instance_id, seq, recorded_at, kind, hash)
                 VALUES ('inst_1', {seq}, {at}, 'gateway_started', sha256('one'))"
            );
            assert_eq!(refusal(&mut gateway, &statement).await, None, "{statement}");
        }
        let found = texts(
            &mut gateway,
            &format!("SELECT tableoid::regclass::text FROM audit.entries WHERE seq = {seq}"),
        )
        .await;
        assert_eq!(found, [partition.clone(), partition.clone()]);
    }
    let before = "INSERT INTO audit.entries (instance_id, seq, recorded_at, kind, hash)
                  VALUES ('inst_1', 99, '2001-01-01', 'gateway_started', sha256('one'))";
    assert!(refusal(&mut gateway, before).await.is_some());
}

/// Nobody who calls a function decides where it looks for tables and operators.
#[tokio::test]
async fn every_function_says_where_it_looks() {
    let database = new_database().await;
    let mut superuser = connect("superuser", &database).await;
    let of_ours = "FROM pg_proc AS p WHERE p.pronamespace IN ('audit'::regnamespace, 'toolgate'::regnamespace)
                   -- Its body is a number, and each migration makes it anew.
                   AND p.oid <> 'toolgate.schema_version()'::regprocedure";
    let all = texts(
        &mut superuser,
        &format!("SELECT p.oid::regprocedure::text {of_ours}"),
    )
    .await;
    assert!(all.len() >= 10, "{all:?}");
    let open = format!(
        "SELECT p.oid::regprocedure::text {of_ours}
         AND NOT COALESCE(p.proconfig, '{{}}') && ARRAY['search_path=pg_catalog, pg_temp', 'search_path=\"\"']"
    );
    assert_eq!(texts(&mut superuser, &open).await, Vec::<String>::new());
}

/// A row of each kind that tells all it must.
fn legal(kind: &str) -> Value {
    let mut row = json!({"instance_id": "inst_1", "seq": 1, "recorded_at": toolgate::clock::now(), "kind": kind, "opens_call": false,
                         "hash": format!("\\x{}", "ab".repeat(32))});
    let mut add = |more: Value| {
        row.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
    };
    if matches!(kind, "refusal" | "parked" | "intent" | "outcome" | "ended") {
        add(json!({"call_id": "call_1"}));
    }
    if matches!(kind, "parked" | "intent") {
        add(json!({
            "agent": "a", "run_id": "run_1", "tool": "t", "arguments": {}, "arguments_digest": "d",
            "contract_digest": "c", "policy_digest": "p",
        }));
    }
    match kind {
        "refusal" => add(json!({"decision": "deny", "reasons": ["halted"]})),
        "parked" => add(json!({"decision": "park", "approval_id": "appr_1"})),
        "intent" => add(json!({"decision": "permit"})),
        "outcome" | "ended" => add(json!({"outcome": "completed"})),
        "approval_vote" | "approval_viewed" | "audit_read" | "halt" | "resume" => {
            add(json!({"operator": "ada"}));
        }
        "agent_refused" => add(json!({"decision": "deny", "reasons": ["scope_missing"]})),
        _ => {}
    }
    row
}

#[tokio::test]
async fn a_row_that_tells_too_little_or_contradicts_itself_is_refused() {
    let database = new_database().await;
    let mut gateway = connect("toolgate_gateway", &database).await;
    let insert =
        "INSERT INTO audit.entries SELECT * FROM jsonb_populate_record(NULL::audit.entries, $1)";
    let kinds = [
        "refusal",
        "parked",
        "intent",
        "outcome",
        "ended",
        "run_opened",
        "run_ended",
        "approval_vote",
        "approval_viewed",
        "halt",
        "resume",
        "key_created",
        "gateway_started",
        "gateway_stopped",
        "operator_refused",
        "audit_read",
        "agent_refused",
        "signing_key_changed",
    ];
    for kind in kinds {
        let inserted = sqlx::query(insert)
            .bind(legal(kind))
            .execute(&mut gateway)
            .await;
        assert!(inserted.is_ok(), "{kind}: {inserted:?}");
    }
    let mut cases = vec![
        ("gateway_started", json!({"kind": "gateway_exploded"})),
        ("gateway_started", json!({"seq": 0})),
        ("gateway_started", json!({"seq": -1})),
        ("gateway_started", json!({"instance_id": null})),
        ("gateway_started", json!({"recorded_at": null})),
        ("gateway_started", json!({"opens_call": true})),
        ("gateway_started", json!({"hash": null})),
        ("gateway_started", json!({"hash": "\\xab"})),
        ("audit_read", json!({"operator": null})),
        ("agent_refused", json!({"reasons": null})),
        ("outcome", json!({"opens_call": true})),
        ("ended", json!({"opens_call": true})),
        (
            "approval_vote",
            json!({"opens_call": true, "call_id": "call_1"}),
        ),
        ("refusal", json!({"decision": "permit"})),
        ("refusal", json!({"decision": null, "reasons": null})),
        ("refusal", json!({"reasons": []})),
        ("parked", json!({"decision": "permit"})),
        ("parked", json!({"approval_id": null})),
        ("intent", json!({"decision": "park"})),
        ("intent", json!({"decision": "deny"})),
        ("outcome", json!({"outcome": null})),
        ("ended", json!({"outcome": null})),
        ("outcome", json!({"outcome": "fine"})),
        ("intent", json!({"decision": "maybe"})),
        ("refusal", json!({"reasons": null})),
        ("refusal", json!({"decision": null})),
        ("intent", json!({"decision": null})),
        ("parked", json!({"decision": null})),
    ];
    for kind in ["refusal", "parked", "intent", "outcome", "ended"] {
        cases.push((kind, json!({"call_id": null})));
    }
    for kind in ["parked", "intent"] {
        for column in [
            "agent",
            "run_id",
            "tool",
            "arguments",
            "arguments_digest",
            "contract_digest",
            "policy_digest",
        ] {
            cases.push((kind, json!({column: null})));
        }
    }
    for kind in ["approval_vote", "approval_viewed", "halt", "resume"] {
        cases.push((kind, json!({"operator": null})));
    }
    let mut taken = Vec::new();
    for (kind, change) in cases {
        let mut row = legal(kind);
        row["seq"] = json!(1_000);
        row.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        if let Ok(_inserted) = sqlx::query(insert).bind(&row).execute(&mut gateway).await {
            taken.push(format!("{kind} with {change}"));
        }
    }
    assert!(taken.is_empty(), "{taken:#?}");
}

#[tokio::test]
async fn every_view_and_each_of_its_columns_says_what_it_is() {
    let database = new_database().await;
    let mut auditor = connect("toolgate_auditor", &database).await;
    let rows = sqlx::query(
        "SELECT c.relname::text AS view, a.attname::text AS name, d.description, v.description AS of_view
         FROM pg_class AS c
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         LEFT JOIN pg_description AS d ON d.objoid = c.oid AND d.objsubid = a.attnum
         LEFT JOIN pg_description AS v ON v.objoid = c.oid AND v.objsubid = 0
         WHERE c.relkind = 'v' AND c.relnamespace = 'audit'::regnamespace",
    )
    .fetch_all(&mut auditor)
    .await
    .unwrap();
    assert!(rows.len() > 60, "{}", rows.len());
    for row in rows {
        let (view, name): (String, String) = (row.get("view"), row.get("name"));
        for text in ["description", "of_view"] {
            let text: Option<String> = row.get(text);
            assert!(
                text.is_some_and(|text| text.len() >= 4),
                "audit.{view}.{name}"
            );
        }
    }
}
