//! The data dictionary: everything in the schema `audit` says what it is, and `src/audit/DICTIONARY.md` is what the database says.
//! Written anew by `TOOLGATE_WRITE_DICTIONARY=1 tests/run the_dictionary`.

use std::fmt::Write as _;

use sqlx::{PgConnection, Row as _};
use toolgate::{
    entry::{Decision, Kind},
    reason::Reason,
};

use crate::{records::connect, support::new_database};

/// Tables and views with their columns, and types, each with its comment. Partitions are the table that they belong to.
async fn dictionary(auditor: &mut PgConnection) -> String {
    let rows = sqlx::query(
        "SELECT c.relname::text AS relation, c.relkind::text AS kind, a.attname::text AS name,
                format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required,
                col_description(c.oid, a.attnum) AS description, obj_description(c.oid, 'pg_class') AS of_relation
         FROM pg_class AS c
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
         ORDER BY c.relkind = 'v' DESC, c.relname, a.attnum",
    )
    .fetch_all(&mut *auditor)
    .await
    .unwrap();
    let mut text = String::from(
        "# What the records hold\n\nEvery view, table and type of the schema `audit`, from the comments in the database itself \
         (`\\d+ audit.calls`). A test\nholds this page against them; `TOOLGATE_WRITE_DICTIONARY=1 tests/run the_dictionary` writes it anew.\n",
    );
    let mut last = String::new();
    for row in rows {
        let (relation, kind): (String, String) = (row.get("relation"), row.get("kind"));
        let of_relation = said(row.get("of_relation"), &relation);
        if relation != last {
            let what = if kind == "v" { "view" } else { "table" };
            write!(
                text,
                "\n## `audit.{relation}` ({what})\n\n{of_relation}\n\n| column | type | |\n|---|---|---|\n"
            )
            .unwrap();
            last.clone_from(&relation);
        }
        let (name, of_type): (String, String) = (row.get("name"), row.get("type"));
        let description = said(row.get("description"), &format!("{relation}.{name}"));
        writeln!(text, "| `{name}` | {of_type} | {description} |").unwrap();
    }
    let types = sqlx::query(
        "SELECT t.typname::text AS name, obj_description(t.oid, 'pg_type') AS description,
                (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid) AS labels
         FROM pg_type AS t WHERE t.typnamespace = 'audit'::regnamespace AND t.typtype = 'e' ORDER BY t.typname",
    )
    .fetch_all(auditor)
    .await
    .unwrap();
    for row in types {
        let (name, labels): (String, Vec<String>) = (row.get("name"), row.get("labels"));
        let description = said(row.get("description"), &name);
        for label in &labels {
            assert!(
                description.contains(label),
                "audit.{name} does not say what {label} is"
            );
        }
        write!(
            text,
            "\n## `audit.{name}` (type)\n\n{description}\n\n`{}`\n",
            labels.join("`, `")
        )
        .unwrap();
    }
    text
}

fn said(description: Option<String>, what: &str) -> String {
    match description {
        Some(text) if text.len() >= 4 => text.replace('|', "\\|"),
        _ => panic!("audit.{what} does not say what it is: COMMENT ON it in a migration"),
    }
}

#[tokio::test]
async fn the_dictionary_is_what_the_database_says() {
    let database = new_database().await;
    let mut auditor = connect("toolgate_auditor", &database).await;
    let now = dictionary(&mut auditor).await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/audit/DICTIONARY.md");
    if std::env::var_os("TOOLGATE_WRITE_DICTIONARY").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        written, now,
        "src/audit/DICTIONARY.md is stale: TOOLGATE_WRITE_DICTIONARY=1 tests/run the_dictionary"
    );
}

/// A kind that the code does not list cannot be asked for.
#[tokio::test]
async fn every_kind_of_entry_and_every_decision_can_be_asked_for() {
    let database = new_database().await;
    let mut auditor = connect("toolgate_auditor", &database).await;
    let query = "SELECT enum_range(NULL::audit.entry_kind)::text[], enum_range(NULL::audit.decision)::text[]";
    let row = sqlx::query(query).fetch_one(&mut auditor).await.unwrap();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let kinds = Kind::ALL.map(|kind| kind.as_str().to_owned()).to_vec();
    assert_eq!(sorted(kinds), sorted(row.get(0)));
    let decisions = Decision::ALL.map(|decision| decision.as_str().to_owned());
    assert_eq!(sorted(decisions.to_vec()), sorted(row.get(1)));
}

/// Nor can a reason; nor is it counted, or documented.
#[test]
fn every_reason_is_listed_in_its_order() {
    let listed: Vec<usize> = Reason::ALL
        .into_iter()
        .map(|reason| reason as usize)
        .collect();
    // The last one that is declared.
    let all: Vec<usize> = (0..=Reason::Internal as usize).collect();
    assert_eq!(listed, all);
}
