//! The command line: what each command takes, and how errors and logs are shown. The only place besides `app` that reads
//! the config.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::demo::{self, DemoArgs};

mod audit;
mod check;
mod keys;
mod psql;
mod serve;
mod work;

/// The policy-enforcing gateway between AI agents and the tool APIs they call.
#[derive(Debug, Parser)]
#[command(name = "toolgate", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A whole world to try: built-in PostgreSQL, a sample API, contracts, policies, keys.
    Demo(DemoArgs),
    /// Serve agents and operators as the config says.
    Serve(ConfigArgs),
    /// Report every problem of config, contracts and policies, with file, line and column.
    Check(CheckArgs),
    /// API keys of agents and operators.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// What was recorded: whether it still is what was written, and how to find a value in it.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// What waits for people, also while the gateway is down.
    #[command(subcommand)]
    Work(work::Work),
    /// What the policies are written against.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Open the database of a running gateway as the auditor, who can read everything and write nothing.
    Psql(PsqlArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The config file.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and print it, once.
    Create(keys::CreateArgs),
    /// What still depends on which master secret: when an old one can be retired.
    Secrets(keys::SecretsArgs),
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Print the Cedar schema that is generated from the contracts.
    Schema(ConfigArgs),
}

#[derive(Debug, Args)]
struct PsqlArgs {
    /// The gateway's home.
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Handed on to psql, for instance: -c 'SELECT * FROM audit.calls'.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Reads the command line and does what it says. Exit codes: 0 done, 1 failed, 2 wrong use or (for `check`) problems found.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for everything that speaks TLS, chosen before anything does.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider was installed before");
    }
    // The driver would take options for the server from there, and durability is not the environment's to choose.
    // Nothing else runs yet that could read the environment at the same time.
    forget_pgoptions();
    let result = match cli.command {
        Command::Demo(args) => {
            let level = if args.once || args.json {
                "error"
            } else {
                "warn"
            };
            log_to_stderr(level);
            run(demo::run(args))
        }
        Command::Serve(args) => {
            log_to_stderr("info");
            run(serve::run(args.config))
        }
        Command::Check(args) => Ok(check::run(&args.config.config, args.json)),
        Command::Keys(KeysCommand::Create(args)) => run(keys::create(args)),
        Command::Keys(KeysCommand::Secrets(args)) => run(keys::secrets(args)),
        Command::Audit(command) => run(audit::run(command)),
        Command::Work(command) => run(work::run(command)),
        Command::Policy(PolicyCommand::Schema(args)) => check::schema(&args.config),
        Command::Psql(args) => psql::run(args.home, &args.arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprint_chain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

#[expect(unsafe_code, reason = "std has no safe way to change the environment")]
fn forget_pgoptions() {
    // SAFETY: called first thing in `main`, before any thread is started.
    unsafe { std::env::remove_var("PGOPTIONS") };
}

#[expect(
    clippy::print_stderr,
    reason = "this is how a command says what went wrong"
)]
fn eprint_chain(error: &anyhow::Error) {
    eprintln!("toolgate: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
}

/// Structured logs on stderr: JSON lines where a machine reads them, plain text on a terminal. `TOOLGATE_LOG` sets what is
/// logged (`tracing` directives).
fn log_to_stderr(default: &str) {
    use std::io::IsTerminal as _;
    use tracing_subscriber::EnvFilter;
    let filter =
        EnvFilter::try_from_env("TOOLGATE_LOG").unwrap_or_else(|_unset| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    if installed.is_err() {
        tracing::debug!("logs were set up before");
    }
}
