//! A month of the built-in database is exported and dropped by the program itself, beside a gateway that serves, and not by
//! somebody who cannot read the gateway's secrets.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use toolgate::{config::Database, database, demo::desk};

use crate::{
    crash::{PROGRAM, Place, Running, until},
    keeping::{Writing, calls, month, months, started, table},
    support::{MASTER, send},
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Stand {
    place: Place,
    variables: [(&'static str, String); 4],
}

impl Stand {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .current_dir(&self.place.path)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    async fn owner(&self) -> PgConnection {
        let home = self.place.home();
        let owner = database::owner(&Database::BuiltIn { home }).unwrap();
        PgConnection::connect_with(&owner).await.unwrap()
    }

    /// Whether every chain is right, by `audit verify`.
    fn is_right(&self) -> bool {
        let home = self.place.home();
        let checked = self.run(&[
            "audit",
            "verify",
            "--json",
            "--home",
            home.to_str().unwrap(),
        ]);
        let report: Value = serde_json::from_slice(&checked.stdout)
            .unwrap_or_else(|_| panic!("{}", said(&checked)));
        report["right"].as_bool().unwrap()
    }
}

/// Three months of an earlier start, as the tables' owner finds them, from before beginnings were signed; and nothing else.
async fn earlier(stand: &Stand) {
    let mut owner = stand.owner().await;
    months(&mut owner).await;
    sqlx::raw_sql(
        "ALTER TABLE audit.entries DISABLE TRIGGER USER; DELETE FROM audit.entries; DELETE FROM toolgate.instances;
         ALTER TABLE audit.entries ENABLE TRIGGER USER",
    )
    .execute(&mut owner)
    .await
    .unwrap();
    let mut start = Writing::begun_in(month(9));
    start.write(&mut owner, month(9), vec![started(&[])]).await;
    for ago in [9, 8, 7] {
        start.write(&mut owner, month(ago), calls()).await;
    }
    sqlx::query("INSERT INTO toolgate.instances (instance_id, started_at, settled_until, ended_at) VALUES ($1, $2, $2, now())")
        .bind(start.instance.as_str())
        .bind(month(7).begins() + TimeDelta::days(1))
        .execute(&mut owner)
        .await
        .unwrap();
}

async fn stands(stand: &Stand) -> bool {
    sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table(month(9)))
        .fetch_one(&mut stand.owner().await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_of_the_built_in_database_goes_by_the_program_beside_its_gateway() {
    let place = Place::new();
    place.write_config();
    let config = place.config();
    let config = config.to_str().unwrap();
    let text = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, text + "\nrecords:\n  keep_for_days: 90\n").unwrap();
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let stand = Stand {
        variables: [
            ("TOOLGATE_HOME", place.home().display().to_string()),
            ("TOOLGATE_MASTER_SECRET", MASTER.to_owned()),
            ("DESK_URL", format!("http://{}", desk.address)),
            ("DESK_TOKEN", "desk-token".to_owned()),
        ],
        place,
    };
    let serve = ["serve", "--config", config];
    let running = Running::start(&serve, &stand.variables).await;
    earlier(&stand).await;
    // It records nothing more. The next start knows of what was there before it.
    running.kill_9();
    let running = Running::start(&serve, &stand.variables).await;

    let export = stand.place.path.join("month.ndjson.gz");
    let export = export.to_str().unwrap();
    let (home, ago) = (stand.place.home(), month(9).to_string());
    let home = home.to_str().unwrap();
    let made = stand.run(&[
        "audit", "export", "--month", &ago, "--to", export, "--home", home,
    ]);
    assert!(made.status.success(), "{}", said(&made));
    let drop_it = [
        "audit", "drop", "--month", &ago, "--export", export, "--config", config, "--json",
    ];
    // Whoever cannot read what the gateway keeps to itself has not got the owner's role.
    if rustix::process::geteuid().is_root() {
        let mut command = stand.command(&drop_it);
        let other = command.uid(65_534).gid(65_534).output().unwrap();
        assert_eq!(other.status.code(), Some(1));
        assert!(
            said(&other).contains("as the user who runs the gateway"),
            "{}",
            said(&other)
        );
        assert!(stands(&stand).await);
    }
    let dropped = stand.run(&drop_it);
    assert!(dropped.status.success(), "{}", said(&dropped));
    let told: Value = serde_json::from_slice(&dropped.stdout).unwrap();
    assert_eq!((&told["now"], &told["entries"]), (&json!(true), &json!(3)));
    assert!(!stands(&stand).await);
    assert!(stand.is_right());
    let again = stand.run(&drop_it);
    let told: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(told["now"], false, "{}", said(&again));

    // The gateway serves as before, and so does the next one.
    let key = stand.run(&[
        "keys",
        "create",
        "--agent",
        "support-bot",
        "--config",
        config,
    ]);
    assert!(key.status.success(), "{}", said(&key));
    let key = String::from_utf8(key.stdout).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let refund = |running: &Running| {
        http.request(
            Method::POST,
            format!("http://{}/desk/refunds", running.agents),
        )
        .bearer_auth(key.trim())
        .json(&json!({"customer": "c_1001", "amount_cents": 100, "currency": "EUR"}))
    };
    until("the key is taken up", async || {
        send(refund(&running)).await.status == 201
    })
    .await;
    let mut running = running;
    running.terminate();
    running.ended().await;
    let mut running = Running::start(&serve, &stand.variables).await;
    send(refund(&running)).await.expect(201);
    assert!(stand.is_right());
    running.terminate();
    running.ended().await;
    // Without its gateway the built-in database does not run, and the command says so.
    let alone = stand.run(&drop_it);
    assert_eq!(alone.status.code(), Some(1));
    assert!(said(&alone).contains("gateway"), "{}", said(&alone));
}
