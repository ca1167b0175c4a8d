//! Opening the database that the config names: the built-in server with its roles and passwords, or somebody else's.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sqlx::postgres::PgConnectOptions;

use crate::{
    config::Database,
    postgres::{self, BuiltIn},
    secrets::{self, Secret, random_hex},
    store::provision,
};

/// A database with its tables made, ready for the gateway.
pub struct Opened {
    /// How the gateway's role connects.
    pub gateway: PgConnectOptions,
    /// The server that must be stopped at the end, if it is ours.
    pub built_in: Option<BuiltIn>,
}

/// Name of the file that tells how the auditor's role connects.
pub const AUDITOR_URL: &str = "auditor.url";

/// Name of the file that holds the URL of the gateway's own role, for `toolgate keys` beside a running gateway.
const GATEWAY_URL: &str = "gateway.url";

/// Opens it; starts the built-in server if that is what the config says, and runs the migrations where it can.
///
/// # Errors
/// A chain that says what to do: install packages, stop another gateway, check a URL.
pub async fn open(database: &Database) -> anyhow::Result<Opened> {
    match database {
        Database::BuiltIn { home } => built_in(home).await,
        Database::External { url, owner_url } => {
            if let Some(owner) = owner_url {
                let owner: PgConnectOptions = parse(owner, "database.external.owner_url")?;
                provision::migrate(&owner)
                    .await
                    .context("the migrations did not run")?;
            }
            Ok(Opened {
                gateway: parse(url, "database.external.url")?,
                built_in: None,
            })
        }
    }
}

/// How the gateway's role connects to a database that is already open (for commands beside a running gateway).
///
/// # Errors
/// When it is built in and no gateway has ever run there.
pub fn beside(database: &Database) -> anyhow::Result<PgConnectOptions> {
    match database {
        Database::BuiltIn { home } => {
            let path = secrets_of(home).join(GATEWAY_URL);
            let url = std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "cannot read {}: start the gateway once with this home",
                    path.display()
                )
            })?;
            parse(&Secret::new(url.trim()), "the gateway's own URL")
        }
        Database::External { url, .. } => parse(url, "database.external.url"),
    }
}

/// How the role that owns the tables connects, for what no serving gateway may do.
///
/// # Errors
/// When the config does not say, or the database is built in and no gateway has ever run there.
pub fn owner(database: &Database) -> anyhow::Result<PgConnectOptions> {
    match database {
        Database::BuiltIn { home } => {
            let path = secrets_of(home).join("owner.password");
            let password = std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "cannot read {}: give this command as the user who runs the gateway",
                    path.display()
                )
            })?;
            Ok(beside(database)?
                .username("toolgate_owner")
                .password(password.trim()))
        }
        Database::External {
            owner_url: Some(url),
            ..
        } => parse(url, "database.external.owner_url"),
        Database::External {
            owner_url: None, ..
        } => anyhow::bail!(
            "this takes the role that owns the tables: give database.external.owner_url"
        ),
    }
}

fn parse(url: &Secret, what: &str) -> anyhow::Result<PgConnectOptions> {
    // The error of the parser may quote the URL, password and all.
    url.expose()
        .parse()
        .map_err(|_error: sqlx::Error| anyhow::anyhow!("{what} is no postgres:// URL"))
}

async fn built_in(home: &Path) -> anyhow::Result<Opened> {
    let server = postgres::start(home)
        .await
        .context("the built-in PostgreSQL did not start")?;
    let secrets = secrets_of(home);
    let read = |name: &str| kept_secret(&secrets.join(format!("{name}.password")));
    let passwords = provision::Passwords([read("owner")?, read("gateway")?, read("auditor")?]);
    provision::roles_and_database(&server.superuser_options(), &passwords)
        .await
        .context("the roles and the database could not be made")?;
    let [owner, gateway, auditor] = &passwords.0;
    provision::migrate(&server.connect_options("toolgate_owner", owner.expose(), "toolgate"))
        .await
        .context("the migrations did not run")?;
    let url = |role: &str, password: &Secret| server.url(role, password.expose(), "toolgate");
    write_private(&home.join(AUDITOR_URL), &url("toolgate_auditor", auditor))?;
    write_private(
        &secrets.join(GATEWAY_URL),
        &url("toolgate_gateway", gateway),
    )?;
    Ok(Opened {
        gateway: server.connect_options("toolgate_gateway", gateway.expose(), "toolgate"),
        built_in: Some(server),
    })
}

fn secrets_of(home: &Path) -> PathBuf {
    home.join("secrets")
}

/// The secret in a file; a new random one if there is no such file.
///
/// # Errors
/// When the file cannot be read or written.
pub fn kept_secret(path: &Path) -> anyhow::Result<Secret> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(Secret::new(text.trim())),
        Ok(_) => anyhow::bail!("{} is empty; restore it from a backup", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = random_hex()?;
            write_private(path, &secret)?;
            Ok(Secret::new(secret))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a line into a file that only its owner can read, whole or not at all.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    secrets::write_private(path, text).with_context(|| format!("cannot write {}", path.display()))
}
