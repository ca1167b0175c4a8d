//! Whatever the database's owner does to the records, the chains show it and name the entry; and somebody else's program, which
//! shares no code with the gateway, comes to the same hashes.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use toolgate::audit::verify::{self, Checked, Fault, Given};

use crate::support::{World, options, send};

/// Two starts with calls of every sort, then the end. Gives the database and the instances in order.
async fn log() -> (String, Vec<String>) {
    let world = World::shipped().await;
    for _ in 0..2 {
        send(world.refund(None, 100)).await.expect(201);
    }
    let (_, approval) = world.parked(None, 25_000).await;
    world.shown("ada", &approval).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    let (_, approval) = world.parked(None, 26_000).await;
    world.decide("bob", &approval, "deny").await.expect(200);
    send(world.refund(None, 250_000)).await.expect(403);
    let halt = world.halt(json!({"kind": "api", "id": "desk"})).await;
    send(world.refund(None, 300)).await.expect(503);
    world.resume(&halt).await;
    send(world.agent(Method::GET, "/desk/customers/c_1001"))
        .await
        .expect(200);
    let world = world.restart(|setup| setup).await;
    send(world.refund(None, 400)).await.expect(201);
    let database = world.database.clone();
    world.gateway.stop().await;
    let mut owner = owner(&database).await;
    let instances = texts(
        &mut owner,
        "SELECT instance_id FROM audit.entries GROUP BY 1 HAVING count(*) > 2 ORDER BY 1",
    )
    .await;
    assert_eq!(instances.len(), 2);
    (database, instances)
}

/// A superuser for whom no trigger holds, and no CHECK either.
async fn owner(database: &str) -> PgConnection {
    PgConnection::connect_with(&options("superuser", database))
        .await
        .unwrap()
}

async fn texts(connection: &mut PgConnection, query: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
        .fetch_all(connection)
        .await
        .unwrap()
}

async fn check(database: &str) -> Vec<Checked> {
    let given = Given::default();
    verify::verify(&options("toolgate_auditor", database), 3, &given, |_| {})
        .await
        .unwrap()
        .instances
}

/// What the other program says, by instance: entries, head, first wrong entry.
pub fn other(database: &str) -> Vec<Value> {
    let printed = Command::new("psql")
        .args([
            "-AtX",
            "-h",
            &crate::support::server_directory(),
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
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verify_chain.py");
    let mut program = Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = program.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(&printed.stdout).unwrap());
    let said = program.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(said.status.success());
    String::from_utf8(said.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn a_log_that_nobody_touched_is_right_and_another_program_agrees() {
    let (database, instances) = log().await;
    let checked = check(&database).await;
    for one in &checked {
        assert_eq!(one.wrong, None, "{one:?}");
    }
    let ours: Vec<Value> = checked
        .iter()
        .map(|one| json!([one.instance, one.entries, one.head, null]))
        .collect();
    let theirs: Vec<Value> = other(&database)
        .iter()
        .map(|one| {
            json!([
                one["instance"],
                one["entries"],
                one["head"],
                one["first_wrong"]
            ])
        })
        .collect();
    assert_eq!(ours, theirs);
    assert!(checked.iter().any(|one| one.instance == instances[1]));

    let ask = || {
        Command::new(env!("CARGO_BIN_EXE_toolgate"))
            .args([
                "audit",
                "verify",
                "--json",
                "--url",
                &crate::support::url("toolgate_auditor", &database),
            ])
            .output()
            .unwrap()
    };
    let said = ask();
    assert!(said.status.success(), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["right"], true);

    // It is the stored rows that the other program looks at, too.
    let mut owner = owner(&database).await;
    owner
        .execute("SET session_replication_role = replica; UPDATE audit.entries SET words = 'forged' WHERE seq = 4")
        .await
        .unwrap();
    let theirs = other(&database);
    assert!(
        theirs.iter().any(|one| one["first_wrong"] == 4),
        "{theirs:?}"
    );
    let said = ask();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let wrong = said["instances"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["instance"] == instances[0].as_str())
        .unwrap();
    assert_eq!(
        (&wrong["wrong"]["seq"], &wrong["wrong"]["fault"]),
        (&json!(4), &json!("changed"))
    );
}

/// A case: what is done, to which entry it must lead, and as what.
struct Case {
    name: String,
    statement: String,
    instance: String,
    seq: i64,
    faults: Vec<Fault>,
}

#[tokio::test]
async fn whatever_the_owner_does_is_named() {
    let (database, instances) = log().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "SET session_replication_role = replica;
             ALTER TABLE audit.entries DROP CONSTRAINT entries_shape;
             CREATE TABLE public.backup AS TABLE audit.entries",
        )
        .await
        .unwrap();
    let mut cases = columns(&mut owner, &instances[0]).await;
    cases.extend(acts(&mut owner, &instances).await);
    for case in cases {
        owner
            .execute(AssertSqlSafe(case.statement.clone()))
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let checked = check(&database).await;
        let one = checked
            .iter()
            .find(|one| one.instance == case.instance)
            .unwrap_or_else(|| panic!("{}: {checked:#?}", case.name));
        let wrong = one
            .wrong
            .as_ref()
            .unwrap_or_else(|| panic!("{}: not seen", case.name));
        assert_eq!(wrong.seq, case.seq, "{}: {wrong:?}", case.name);
        assert!(
            case.faults.contains(&wrong.fault),
            "{}: {wrong:?}",
            case.name
        );
        owner
            .execute(
                "TRUNCATE audit.entries; INSERT INTO audit.entries SELECT * FROM public.backup",
            )
            .await
            .unwrap();
    }
    assert!(check(&database).await.iter().all(|one| one.wrong.is_none()));
}

/// Each column of an entry in the middle, changed to something else of its type.
async fn columns(owner: &mut PgConnection, instance: &str) -> Vec<Case> {
    let found = owner
        .fetch_all(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = 'audit.entries'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        )
        .await
        .unwrap();
    assert_eq!(found.len(), 37, "a column that no case is written for");
    let mut cases = Vec::new();
    for row in &found {
        let (column, kind): (String, String) = (row.get(0), row.get(1));
        let other = match kind.as_str() {
            "text" => format!("COALESCE({column}, '') || 'x'"),
            "text[]" => format!("COALESCE({column}, '{{}}') || 'x'::text"),
            "jsonb" => "'{\"forged\": true}'".to_owned(),
            "bigint" => format!("{column} + 1000"),
            "smallint" => format!("COALESCE({column}, 0::smallint) + 1"),
            "boolean" => format!("NOT COALESCE({column}, false)"),
            "bytea" => "sha256('forged')".to_owned(),
            "timestamp with time zone" => {
                format!("COALESCE({column}, now()) + interval '1 microsecond'")
            }
            "audit.entry_kind" => "'resume'".to_owned(),
            "audit.decision" => {
                "CASE WHEN decision = 'deny' THEN 'park' ELSE 'deny' END::audit.decision".to_owned()
            }
            "audit.outcome" => {
                "CASE WHEN outcome = 'failed' THEN 'completed' ELSE 'failed' END::audit.outcome"
                    .to_owned()
            }
            other => panic!("no case for a column of type {other}"),
        };
        for seq in [1, 6] {
            cases.push(Case {
                name: format!("{column} of entry {seq} changed"),
                statement: format!(
                    "UPDATE audit.entries SET {column} = {other} WHERE instance_id = '{instance}' AND seq = {seq}"
                ),
                instance: instance.to_owned(),
                seq,
                faults: match column.as_str() {
                    "seq" | "instance_id" => vec![Fault::Missing],
                    _ => vec![Fault::Changed],
                },
            });
        }
    }
    cases
}

/// Everything else that can be done to a table.
async fn acts(owner: &mut PgConnection, instances: &[String]) -> Vec<Case> {
    let [first, second] = instances else {
        panic!("{instances:?}")
    };
    let last: i64 = sqlx::query_scalar("SELECT max(seq) FROM audit.entries WHERE instance_id = $1")
        .bind(first)
        .fetch_one(&mut *owner)
        .await
        .unwrap();
    let swap = |a: i64, b: i64| {
        format!(
            "UPDATE audit.entries SET seq = CASE seq WHEN {a} THEN -{b} ELSE -{a} END
             WHERE instance_id = '{first}' AND seq IN ({a}, {b});
             UPDATE audit.entries SET seq = -seq WHERE instance_id = '{first}' AND seq < 0"
        )
    };
    let of_first = format!("instance_id = '{first}'");
    let copy = |changes: &str| {
        format!(
            "INSERT INTO audit.entries
             SELECT (jsonb_populate_record(e, jsonb_build_object({changes}))).* FROM audit.entries AS e
             WHERE {of_first} AND seq = "
        )
    };
    let case = |name: &str, statement: String, seq: i64, faults: &[Fault]| Case {
        name: name.to_owned(),
        statement,
        instance: first.clone(),
        seq,
        faults: faults.to_vec(),
    };
    vec![
        case(
            "the hash taken away",
            format!("UPDATE audit.entries SET hash = NULL WHERE {of_first} AND seq = 5"),
            5,
            &[Fault::Unchained],
        ),
        case(
            "one taken out",
            format!("DELETE FROM audit.entries WHERE {of_first} AND seq = 7"),
            7,
            &[Fault::Missing],
        ),
        case(
            "the first taken out",
            format!("DELETE FROM audit.entries WHERE {of_first} AND seq = 1"),
            1,
            &[Fault::Missing],
        ),
        case(
            "several taken out",
            format!("DELETE FROM audit.entries WHERE {of_first} AND seq BETWEEN 4 AND 9"),
            4,
            &[Fault::Missing],
        ),
        case(
            "the tail cut",
            format!(
                "DELETE FROM audit.entries WHERE {of_first} AND seq > {}",
                last - 3
            ),
            last - 2,
            &[Fault::TailCut],
        ),
        case("neighbours swapped", swap(4, 5), 4, &[Fault::Reordered]),
        case("two far ones swapped", swap(4, 9), 4, &[Fault::Reordered]),
        case(
            "a second one with a number",
            format!(
                "{}8",
                copy("'recorded_at', e.recorded_at + interval '1 second', 'words', 'forged'")
            ),
            8,
            &[Fault::Inserted],
        ),
        case(
            "one behind the end",
            format!("{}{last}", copy(&format!("'seq', {}", last + 1))),
            last + 1,
            &[Fault::Inserted, Fault::Changed],
        ),
        case(
            "one put in between",
            format!(
                "UPDATE audit.entries SET seq = -seq - 1 WHERE {of_first} AND seq >= 6;
                 UPDATE audit.entries SET seq = -seq WHERE {of_first} AND seq < 0;
                 {}5",
                copy("'seq', 6, 'words', 'forged'")
            ),
            6,
            &[Fault::Inserted, Fault::Changed],
        ),
        case(
            "all of an instance taken away",
            format!("DELETE FROM audit.entries WHERE {of_first}"),
            1,
            &[Fault::Unlinked],
        ),
        case(
            "one given to another instance",
            format!(
                "UPDATE audit.entries SET instance_id = '{second}', seq = 999 WHERE {of_first} AND seq = 7"
            ),
            7,
            &[Fault::Missing],
        ),
    ]
}

/// Somebody who knows how hashes are made rewrites the end of an instance: it fits in itself, and the next start knows better.
#[tokio::test]
async fn a_chain_that_was_made_anew_contradicts_the_next_start() {
    let (database, instances) = log().await;
    let mut owner = owner(&database).await;
    owner
        .execute("SET session_replication_role = replica")
        .await
        .unwrap();
    let mut rows = Vec::new();
    {
        use futures::TryStreamExt as _;
        let mut stored = toolgate::store::audit_log::rows(&mut owner, &instances[0], 1, i64::MAX);
        while let Some(row) = stored.try_next().await.unwrap() {
            rows.push(row);
        }
    }
    let mut head = toolgate::entry::chain::START;
    for stored in &rows {
        let mut row = stored.row();
        if stored.seq == 5 {
            row.words = Some("forged");
        }
        head = toolgate::entry::chain::hash(&head, &row);
        sqlx::query(
            "UPDATE audit.entries SET hash = $1, words = $2 WHERE instance_id = $3 AND seq = $4",
        )
        .bind(head.as_slice())
        .bind(row.words)
        .bind(&instances[0])
        .bind(stored.seq)
        .execute(&mut owner)
        .await
        .unwrap();
    }
    let checked = check(&database).await;
    let one = checked
        .iter()
        .find(|one| one.instance == instances[0])
        .unwrap();
    let wrong = one.wrong.as_ref().unwrap();
    assert_eq!(wrong.fault, Fault::Rewritten, "{wrong:?}");
    assert_eq!(wrong.seq, rows.last().unwrap().seq);
}
