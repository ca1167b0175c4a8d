//! The only SQL in the gateway: plain functions over a connection, one file for each group of tables.
//! Never decides anything and never knows HTTP.

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

pub mod approvals;
pub mod audit;
pub mod audit_log;
pub mod calls;
pub mod composition;
pub mod delegations;
pub mod deliveries;
pub mod entries;
pub mod history;
pub mod instances;
pub mod keeping;
pub mod keys;
pub mod kill_switches;
pub mod lines;
pub mod outbox;
pub mod permissions;
pub mod provision;
pub mod recent;
pub mod references;
pub mod runs;
pub mod statistics;
pub mod work;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, is starting, stopping or full: the same may work later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// It refused this very row or statement; trying again changes nothing.
    #[error("the database refused: {0}")]
    Refused(String),
    /// What the statement rests on is not so (any more).
    #[error("{0}")]
    Conflict(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                // SQLSTATE classes: 22 data exception, 23 integrity violation, 42 syntax or access rule, 28 login,
                // 2F/P0 raised by our own functions. Everything else is about the server's state.
                // A time for which no partition was made. That is no fault of the row, and can be mended: unlike every other check
                // it has no name.
                if code == "23514" && database.constraint().is_none() {
                    Self::Unavailable(text)
                } else if ["22", "23", "42", "2F", "P0"]
                    .iter()
                    .any(|class| code.starts_with(class))
                {
                    Self::Refused(text)
                } else {
                    Self::Unavailable(text)
                }
            }
            sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. } => Self::Refused(text),
            _ => Self::Unavailable(text),
        }
    }
}

/// Number of the advisory lock that the one serving gateway holds on its database. Any number will do, as
/// long as it never changes.
const GATEWAY_LOCK: i64 = 0x746f_6f6c_6761_7465;

/// Opens the connection through which everything is recorded, and takes the lock that only one gateway
/// can hold. The lock lives and dies with the connection, so whatever was committed through it was committed by
/// the one gateway.
///
/// # Errors
/// [`StoreError::Conflict`] when another gateway serves this database.
pub async fn open_writer(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let options = options
        .clone()
        .application_name("toolgate writer")
        .options([
            ("synchronous_commit", "on"),
            ("statement_timeout", "5000"),
            ("lock_timeout", "5000"),
            ("jit", "off"),
            ("timezone", "UTC"),
        ]);
    let mut connection = PgConnection::connect_with(&options).await?;
    let locked = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_lock($1) AS "locked!""#,
        GATEWAY_LOCK
    )
    .fetch_one(&mut connection)
    .await?;
    if locked {
        Ok(connection)
    } else {
        Err(StoreError::Conflict(
            "another gateway serves this database; stop it first (one gateway a database)"
                .to_owned(),
        ))
    }
}

/// How operators' questions to the records reach the database: they change nothing, end in time, and are planned for what they
/// ask, because a plan for just any filter would fit none.
pub fn reading(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("toolgate records").options([
        ("default_transaction_read_only", "on"),
        ("statement_timeout", "20000"),
        ("idle_in_transaction_session_timeout", "20000"),
        ("plan_cache_mode", "force_custom_plan"),
        ("jit", "off"),
        ("timezone", "UTC"),
    ])
}

/// Asks the database anything at all.
///
/// # Errors
/// When it does not answer.
pub async fn ping(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(r#"SELECT 1 AS "one!""#)
        .fetch_one(connection)
        .await?;
    Ok(())
}
