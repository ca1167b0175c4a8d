//! Values that an agent knows only by a reference: sealed, for as long as their run is open.

use sqlx::PgConnection;

use super::StoreError;
use crate::ids::RunId;

/// A reference to be kept.
#[derive(Debug, Clone)]
pub struct NewReference {
    /// What the agent is given.
    pub reference: String,
    /// The class of the value.
    pub class: String,
    /// The value as JSON, sealed.
    pub sealed: Vec<u8>,
}

/// A reference as it is kept.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct ReferenceRow {
    pub reference: String,
    pub class: String,
    pub sealed: Vec<u8>,
}

/// Keeps references of a run; those that it has already stay as they are.
///
/// # Errors
/// [`StoreError::Conflict`] when the run is over or would have more than `most`: nothing of the transaction may stand then. Or
/// the database is away.
pub async fn add(
    connection: &mut PgConnection,
    run: &RunId,
    new: &[NewReference],
    most: u32,
) -> Result<(), StoreError> {
    let references: Vec<String> = new.iter().map(|new| new.reference.clone()).collect();
    let classes: Vec<String> = new.iter().map(|new| new.class.clone()).collect();
    let sealed: Vec<Vec<u8>> = new.iter().map(|new| new.sealed.clone()).collect();
    sqlx::query!(
        "INSERT INTO toolgate.value_references (run_id, reference, class, sealed)
         SELECT $1, new.reference, new.class, new.sealed
         FROM unnest($2::text[], $3::text[], $4::bytea[]) AS new (reference, class, sealed)
         ON CONFLICT (run_id, reference) DO NOTHING",
        run.as_str(),
        &references,
        &classes,
        &sealed
    )
    .execute(&mut *connection)
    .await?;
    let may = sqlx::query_scalar!(
        r#"SELECT (ended_at IS NULL AND (expires_at IS NULL OR expires_at > now())
                   AND (SELECT count(*) FROM toolgate.value_references WHERE run_id = $1) <= $2) AS "may!"
           FROM toolgate.runs WHERE run_id = $1"#,
        run.as_str(),
        i64::from(most)
    )
    .fetch_one(connection)
    .await?;
    if may {
        Ok(())
    } else {
        Err(StoreError::Conflict(
            "the run is over, or knows as many values by reference as it may".to_owned(),
        ))
    }
}

/// Those of some references that a run has.
///
/// # Errors
/// When the database is away.
pub async fn find(
    connection: &mut PgConnection,
    run: &RunId,
    references: &[String],
) -> Result<Vec<ReferenceRow>, StoreError> {
    let rows = sqlx::query_as!(
        ReferenceRow,
        "SELECT reference, class, sealed FROM toolgate.value_references
         WHERE run_id = $1 AND reference = ANY ($2)",
        run.as_str(),
        references
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Erases the values of every run that is over; gives how many.
///
/// # Errors
/// When the database is away.
pub async fn erase(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let erased = sqlx::query_scalar!(r#"SELECT toolgate.erase_references() AS "erased!""#)
        .fetch_one(connection)
        .await?;
    Ok(erased)
}
