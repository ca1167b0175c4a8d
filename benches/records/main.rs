//! What recording costs, how fast the chains are checked, and whether the records answer what is asked of them.
//!
//! `cargo bench --bench records` starts a PostgreSQL of its own with fsync on and records calls through the gateway's own writer; then
//! `toolgate audit verify` checks them. `-- --entries 1000000` takes more of them. `-- --queries 10000000` makes a sample through the
//! writer, has PostgreSQL multiply it, and runs each documented query. `-- --json` prints JSON. Everything made is removed again.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::indexing_slicing,
    reason = "a serde_json::Value gives null for what it does not have"
)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use toolgate::{
    audit::{Checkpoints, Recorder},
    postgres::{self, BuiltIn},
    secrets::Secret,
    signing,
    sinks::{FileSettings, SinkSettings, Sinks},
    store::provision,
};

mod cost;
mod indexes;
mod proc;
mod queries;
mod world;

#[derive(Parser)]
struct Args {
    /// Entries to record.
    #[arg(long, default_value_t = 60_000)]
    entries: u64,
    /// Fill the table with this many rows and run the documented queries instead.
    #[arg(long, value_name = "ROWS")]
    queries: Option<u64>,
    /// Where the database is made.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The server and how its roles connect.
pub struct Database {
    home: PathBuf,
    server: BuiltIn,
}

impl Database {
    async fn new(home: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&home)?;
        let server = postgres::start(&home).await?;
        provision::roles_and_database(
            &server.superuser_options(),
            &provision::Passwords([password(), password(), password()]),
        )
        .await?;
        let made = Self { home, server };
        provision::migrate(&made.role("toolgate_owner")).await?;
        Ok(made)
    }

    pub fn role(&self, name: &str) -> PgConnectOptions {
        self.server
            .connect_options(name, password().expose(), "toolgate")
    }

    pub async fn superuser(&self) -> anyhow::Result<PgConnection> {
        let options = self.server.superuser_options().database("toolgate");
        Ok(PgConnection::connect_with(&options).await?)
    }

    pub async fn recorder(&self, world: &world::World) -> anyhow::Result<Recorder> {
        let patience = Duration::from_secs(30);
        // The shipped config's intervals, and a sink that keeps what it gets: what an installation pays for.
        let kept = SinkSettings::File(FileSettings {
            path: self.home.join("checkpoints"),
        });
        let checkpoints = Checkpoints {
            held: signing::open(&self.home.join("signing.key"), "toolgate.example.com/bench")?,
            every_entries: 1_000,
            every: Duration::from_secs(60),
            sinks: Sinks::start(&[("file".to_owned(), kept)])?,
        };
        let gateway = self.role("toolgate_gateway");
        Ok(Recorder::start(gateway, patience, world.redactor(), checkpoints).await?)
    }

    /// The same with nothing in the server's own cache; what the operating system keeps of the files stays.
    pub async fn restarted(self) -> anyhow::Result<Self> {
        self.server.stop().await;
        let server = postgres::start(&self.home).await?;
        Ok(Self { server, ..self })
    }
}

fn password() -> Secret {
    Secret::new("only for this benchmark")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let home = args.directory.clone().unwrap_or_else(std::env::temp_dir);
    let home = home.join(format!("toolgate-records-{}", std::process::id()));
    let database = Database::new(home.clone()).await?;
    let world = Arc::new(world::World::new()?);
    let done = run(&args, database, world).await;
    std::fs::remove_dir_all(&home)?;
    let figures = done?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    }
    Ok(())
}

async fn run(args: &Args, database: Database, world: Arc<world::World>) -> anyhow::Result<Value> {
    if let Some(rows) = args.queries {
        let (database, figures) = queries::run(database, &world, rows, !args.json).await?;
        database.server.stop().await;
        return Ok(figures);
    }
    let figures = cost::run(&database, &world, args.entries, !args.json).await;
    database.server.stop().await;
    Ok(json!({"cost": figures?}))
}
