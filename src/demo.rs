//! `toolgate demo`: the whole product on one machine, with nothing to set up. Everything in it but the sample API is the
//! real thing.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::{
    app::{RuleFiles, load_rules},
    config::{self, Config, Database, Variables},
    database::{self, AUDITOR_URL, kept_secret, write_private},
    diagnostics::{self, SourceFile},
    issuing,
    keys::KeyKind,
    postgres,
    secrets::{Keyring, Secret},
    server::{self, Gateway},
};

mod client;
pub mod desk;
mod once;
mod screen;

use screen::Screen;

/// `toolgate demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Run the sample calls through real HTTP, approve one, halt and resume, print the run's audit rows, and end.
    #[arg(long)]
    pub once: bool,
    /// Where data, keys and secrets are kept [default: ./.toolgate; as root /var/lib/toolgate where the database's user
    /// cannot enter that].
    #[arg(long, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Where agents connect.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub agents: SocketAddr,
    /// Where operators connect.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub operators: SocketAddr,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub json: bool,
}

/// The keys that the demo makes: file, kind, whose.
const KEYS: [(&str, KeyKind, &str); 3] = [
    ("agent.key", KeyKind::Agent, "support-bot"),
    ("operator.key", KeyKind::Operator, "ada"),
    ("second-operator.key", KeyKind::Operator, "bob"),
];

/// Where everything is, once it runs.
struct Stage {
    home: PathBuf,
    gateway: Gateway,
    desk: desk::Desk,
    keys: BTreeMap<&'static str, Secret>,
}

/// Starts the world, and either waits for the end or runs the sample calls.
///
/// # Errors
/// When something does not start; with `--once` also when an answer is not the expected one.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let screen = Screen::new(args.json);
    let home = match &args.home {
        Some(home) => std::path::absolute(home)?,
        None => postgres::default_home(&std::env::current_dir()?),
    };
    let stage = set(&args, home, &screen).await?;
    let code = if args.once {
        let passed = once::run(&stage, &screen).await?;
        if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    } else {
        announce(&stage, &screen);
        stage.gateway.ended().await?;
        ExitCode::SUCCESS
    };
    let progress = screen.step("stopping");
    stage.gateway.stop().await;
    progress.done("stopped");
    Ok(code)
}

async fn set(args: &DemoArgs, home: PathBuf, screen: &Screen) -> anyhow::Result<Stage> {
    let progress = screen.step("starting PostgreSQL, the gateway and the sample API");
    let secrets = home.join("secrets");
    prepare_home(&home)?;
    let master = kept_secret(&secrets.join("master.secret"))?;
    let token = kept_secret(&secrets.join("desk.token"))?;
    let desk = desk::start(token.expose().to_owned())
        .await
        .context("the sample API did not start")?;
    let variables = Variables::default()
        .with("TOOLGATE_HOME", home.display().to_string())
        .with("TOOLGATE_MASTER_SECRET", master.expose())
        .with("DESK_URL", format!("http://{}", desk.address))
        .with("DESK_TOKEN", token.expose());
    let (mut config, rules) = shipped(&variables)?;
    config.agents_address = args.agents;
    config.operators_address = args.operators;
    config.database = Database::BuiltIn { home: home.clone() };
    let database = config.database.clone();
    let gateway = server::start(config, rules).await?;
    let ring = Keyring::new(&master)?;
    let keys = keys(&home, &database, &ring).await?;
    wait_until_ready(&gateway, &keys).await?;
    progress.done("PostgreSQL, the gateway and the sample API are up");
    Ok(Stage {
        home,
        gateway,
        desk,
        keys,
    })
}

/// The directory must exist before the first secret goes into it; what the database's user must pass through stays
/// passable (`postgres::start` sees to that).
fn prepare_home(home: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))
}

/// The config, contracts and policies that ship with the program: the very files of `config/` and `policies/`.
fn shipped(variables: &Variables) -> anyhow::Result<(Config, crate::app::Rules)> {
    let file = SourceFile::new(
        "config/toolgate.yaml",
        include_str!("../config/toolgate.yaml"),
    );
    let files = RuleFiles {
        tools: vec![
            SourceFile::new(
                "config/tools/desk.yaml",
                include_str!("../config/tools/desk.yaml"),
            ),
            SourceFile::new(
                "config/tools/etcd.yaml",
                include_str!("../config/tools/etcd.yaml"),
            ),
        ],
        policies: vec![
            SourceFile::new(
                "policies/defaults.cedar",
                include_str!("../policies/defaults.cedar"),
            ),
            SourceFile::new(
                "policies/desk.cedar",
                include_str!("../policies/desk.cedar"),
            ),
            SourceFile::new(
                "policies/etcd.cedar",
                include_str!("../policies/etcd.cedar"),
            ),
            SourceFile::new(
                "policies/operators.cedar",
                include_str!("../policies/operators.cedar"),
            ),
        ],
    };
    let (config, mut findings) = config::load(&file, variables);
    if let Some(config) = config {
        let (rules, more) = load_rules(&config, &files);
        if let Some(rules) = rules {
            return Ok((config, rules));
        }
        findings.extend(more);
    }
    let all: Vec<String> = findings
        .iter()
        .filter(|finding| !finding.note)
        .map(|finding| format!("{:?}", diagnostics::report(finding)))
        .collect();
    anyhow::bail!("the shipped files have problems:\n{}", all.join("\n"))
}

/// The key files, each made unless it holds a key that is in force.
async fn keys(
    home: &Path,
    database: &Database,
    ring: &Keyring,
) -> anyhow::Result<BTreeMap<&'static str, Secret>> {
    let options = database::beside(database)?;
    let mut keys = BTreeMap::new();
    for (name, kind, owner) in KEYS {
        let path = home.join(name);
        let kept = std::fs::read_to_string(&path)
            .ok()
            .map(|text| Secret::new(text.trim()));
        let key = match kept {
            Some(key) if issuing::is_known(&options, ring, kind, &key).await? => key,
            _ => {
                let (_, key) = issuing::issue(&options, ring, kind, owner, None).await?;
                write_private(&path, key.expose())?;
                key
            }
        };
        keys.insert(name, key);
    }
    Ok(keys)
}

/// Until both listeners answer and the keys are taken up.
async fn wait_until_ready(
    gateway: &Gateway,
    keys: &BTreeMap<&'static str, Secret>,
) -> anyhow::Result<()> {
    let key = |name: &str| keys.get(name).map_or("", |key| key.expose());
    for _ in 0..200 {
        let agents = client::get(gateway.agents, "/v1/tools", key("agent.key")).await;
        let operators =
            client::get(gateway.operators, "/v1/kill-switches", key("operator.key")).await;
        let second = client::get(
            gateway.operators,
            "/v1/kill-switches",
            key("second-operator.key"),
        )
        .await;
        let up = |answer: &anyhow::Result<client::Answer>| matches!(answer, Ok(answer) if answer.status == 200);
        if up(&agents) && up(&operators) && up(&second) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the listeners do not answer with the new keys")
}

fn announce(stage: &Stage, screen: &Screen) {
    let home = shown(&stage.home);
    let (agents, operators) = (stage.gateway.agents, stage.gateway.operators);
    screen.event(&json!({
        "event": "ready",
        "agents": format!("http://{agents}"),
        "operators": format!("http://{operators}"),
        "desk": format!("http://{}", stage.desk.address),
        "home": stage.home,
        "agent_key": stage.home.join("agent.key"),
        "operator_key": stage.home.join("operator.key"),
        "second_operator_key": stage.home.join("second-operator.key"),
        "auditor_url": stage.home.join(AUDITOR_URL),
    }));
    screen.lines(&[
        String::new(),
        format!("  agents     http://{agents}/desk   the sample API's own paths, guarded"),
        format!("  operators  http://{operators}        approvals and the kill switch"),
        format!("  desk       http://{}        the sample API; /_received counts what reached it", stage.desk.address),
        format!("  keys       {home}/agent.key, operator.key, second-operator.key"),
        format!("  records    psql \"$(cat {home}/{AUDITOR_URL})\" -c 'SELECT * FROM audit.calls'"),
        String::new(),
        "Try, in another terminal:".to_owned(),
        String::new(),
        "  # passes: a refund of 12.00 runs unattended".to_owned(),
        refund(agents, &home, 1_200),
        String::new(),
        "  # is parked: 250.00 waits for a person in tier finance".to_owned(),
        refund(agents, &home, 25_000),
        String::new(),
        "  # is denied: 2,500.00 is more than anybody may refund here".to_owned(),
        refund(agents, &home, 250_000),
        String::new(),
        "  # see what waits; each names its digest, which an approval must repeat".to_owned(),
        format!("  curl -s http://{operators}/v1/approvals?state=pending -H \"Authorization: Bearer $(cat {home}/operator.key)\""),
        String::new(),
        "  # stop everything; DELETE /v1/kill-switches/{id} resumes".to_owned(),
        format!(
            "  curl -s http://{operators}/v1/kill-switches -H \"Authorization: Bearer $(cat {home}/operator.key)\" \\\n    -H 'Content-Type: application/json' -d '{{\"scope\":{{\"kind\":\"everything\"}},\"reason\":\"trying it\"}}'"
        ),
        String::new(),
        "ready".to_owned(),
    ]);
}

fn refund(agents: std::net::SocketAddr, home: &str, amount_cents: u32) -> String {
    format!(
        "  curl -s http://{agents}/desk/refunds -H \"Authorization: Bearer $(cat {home}/agent.key)\" \\\n    -H 'Content-Type: application/json' -d '{{\"customer\":\"c_1001\",\"amount_cents\":{amount_cents},\"currency\":\"EUR\"}}'"
    )
}

/// The home as a person would type it from here.
fn shown(home: &Path) -> String {
    let here = std::env::current_dir().ok();
    let relative = here
        .as_deref()
        .and_then(|here| home.strip_prefix(here).ok());
    relative.unwrap_or(home).display().to_string()
}

/// True where a person looks at the output.
fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
