//! The indexes over the entries, taken away and made again between measurements.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

/// One index that the key does not need.
pub struct Index {
    name: String,
    definition: String,
}

/// Those of `audit.entries` that are not its primary key's.
pub async fn of_entries(superuser: &mut PgConnection) -> anyhow::Result<Vec<Index>> {
    let rows = sqlx::query(
        "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index
         WHERE indrelid = 'audit.entries'::regclass AND NOT indisprimary",
    )
    .fetch_all(superuser)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Index {
                name: row.try_get::<String, _>("name")?.replace("audit.", ""),
                definition: row.try_get("definition")?,
            })
        })
        .collect()
}

/// Empties the table and leaves it with those indexes that `keeps` names, as they would have been made.
pub async fn keep(
    superuser: &mut PgConnection,
    indexes: &[Index],
    keeps: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let mut statements = vec![
        "SET session_replication_role = replica".to_owned(),
        "TRUNCATE audit.entries".to_owned(),
    ];
    for Index { name, definition } in indexes {
        statements.push(format!("DROP INDEX IF EXISTS audit.{name}"));
        if keeps(name) {
            // A definition of a partitioned table's index says ONLY, which would leave the partitions without.
            statements.push(definition.replace(" ON ONLY ", " ON "));
        }
    }
    sqlx::raw_sql(AssertSqlSafe(statements.join(";\n")))
        .execute(superuser)
        .await?;
    Ok(())
}
