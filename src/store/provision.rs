//! Making the database what the gateway needs: its roles, the database itself, the tables.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions};

use super::StoreError;
use crate::secrets::Secret;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// The roles, in the order in which they must exist.
const ROLES: [(&str, &str); 3] = [
    ("toolgate_owner", "LOGIN CREATEROLE"),
    ("toolgate_gateway", "LOGIN"),
    ("toolgate_auditor", "LOGIN"),
];

/// Passwords of the three roles, in the order owner, gateway, auditor.
pub struct Passwords(pub [Secret; 3]);

/// Makes the roles with these passwords and the database `toolgate`, where they are missing; sets the passwords
/// where they exist. For a server that belongs to the gateway alone.
///
/// # Errors
/// When the server is away or the role may not create roles.
pub async fn roles_and_database(
    superuser: &PgConnectOptions,
    passwords: &Passwords,
) -> Result<(), StoreError> {
    let mut connection = PgConnection::connect_with(superuser).await?;
    for ((role, attributes), password) in ROLES.iter().zip(&passwords.0) {
        let exists = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1) AS "exists!""#,
            role
        )
        .fetch_one(&mut connection)
        .await?;
        let verb = if exists { "ALTER" } else { "CREATE" };
        // Role statements take no parameters; the names are our own constants and the password is escaped.
        let password = password.expose().replace('\'', "''");
        connection
            .execute(AssertSqlSafe(format!(
                "{verb} ROLE {role} {attributes} PASSWORD '{password}'"
            )))
            .await?;
    }
    let exists = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'toolgate') AS "exists!""#
    )
    .fetch_one(&mut connection)
    .await?;
    if !exists {
        connection
            .execute("CREATE DATABASE toolgate OWNER toolgate_owner")
            .await?;
    }
    connection.close().await?;
    Ok(())
}

/// Runs the migrations that have not run yet, as the owner.
///
/// # Errors
/// When the server is away, or a migration that ran was changed since.
pub async fn migrate(owner: &PgConnectOptions) -> Result<(), StoreError> {
    let mut connection = PgConnection::connect_with(owner).await?;
    // The book-keeping of migrations is the owner's own affair.
    connection
        .execute("CREATE SCHEMA IF NOT EXISTS migrations; SET search_path = migrations")
        .await?;
    MIGRATIONS
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|error| StoreError::Refused(error.to_string()))?;
    connection.close().await?;
    Ok(())
}

/// The number of the last migration that stands in the database; 0 where there is none.
///
/// # Errors
/// When the database is away.
pub async fn schema_version(connection: &mut PgConnection) -> Result<i32, StoreError> {
    let made = sqlx::query_scalar!(
        r#"SELECT to_regprocedure('toolgate.schema_version()') IS NOT NULL AS "made!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !made {
        return Ok(0);
    }
    let version = sqlx::query_scalar!(r#"SELECT toolgate.schema_version() AS "version!""#)
        .fetch_one(connection)
        .await?;
    Ok(version)
}

/// The number of the last migration that this program knows.
pub fn newest_version() -> i32 {
    MIGRATIONS
        .iter()
        .filter_map(|migration| i32::try_from(migration.version).ok())
        .max()
        .unwrap_or(0)
}
