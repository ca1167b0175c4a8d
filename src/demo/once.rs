//! `toolgate demo --once`: the sample calls through real HTTP, each held against what it must answer, and at the end the
//! run as the audit tables tell it.

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};

use super::{Screen, Stage, client};
use crate::database::AUDITOR_URL;

/// One thing that was done and what came of it.
struct Account<'a> {
    screen: &'a Screen,
    all_good: bool,
}

impl Account<'_> {
    fn tell(&mut self, what: &str, expected: &str, found: &str) {
        let good = expected == found;
        self.all_good &= good;
        self.screen.event(&json!({"event": "step", "what": what, "expected": expected, "found": found, "good": good}));
        let found = if good {
            found.to_owned()
        } else {
            format!("{found}   (expected {expected})")
        };
        self.screen
            .lines(&[format!("  {} {what:<58} {found}", self.screen.mark(good))]);
    }
}

/// The status, and the problem's code if there is one.
fn brief(answer: &client::Answer) -> String {
    match answer.body.get("code").and_then(Value::as_str) {
        Some(code) => format!("{} {code}", answer.status),
        None => answer.status.to_string(),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

struct Actors<'a> {
    stage: &'a Stage,
    run: String,
}

impl Actors<'_> {
    fn key(&self, name: &str) -> &str {
        self.stage.keys.get(name).map_or("", |key| key.expose())
    }

    async fn agent(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<client::Answer> {
        let headers = [("toolgate-run", self.run.as_str())];
        let headers = if self.run.is_empty() {
            &headers[..0]
        } else {
            &headers[..]
        };
        client::send(
            self.stage.gateway.agents,
            method,
            path,
            self.key("agent.key"),
            headers,
            body,
        )
        .await
    }

    async fn operator(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<client::Answer> {
        client::send(
            self.stage.gateway.operators,
            method,
            path,
            self.key("operator.key"),
            &[],
            body,
        )
        .await
    }

    async fn refund(&self, amount_cents: u32) -> anyhow::Result<client::Answer> {
        let body = json!({"customer": "c_1001", "amount_cents": amount_cents, "currency": "EUR"});
        self.agent(Method::POST, "/desk/refunds", Some(&body)).await
    }
}

/// True when every answer was the expected one.
pub(super) async fn run(stage: &Stage, screen: &Screen) -> anyhow::Result<bool> {
    let mut account = Account {
        screen,
        all_good: true,
    };
    let mut actors = Actors {
        stage,
        run: String::new(),
    };
    screen.lines(&[
        String::new(),
        "A support agent works on a ticket:".to_owned(),
    ]);
    let opened = actors
        .agent(
            Method::POST,
            "/v1/runs",
            Some(&json!({"triggered_by": "ticket:4711", "purpose": "settle a complaint", "expires_in_seconds": 3600})),
        )
        .await?;
    account.tell(
        "open a run, saying who asked and what for",
        "201",
        &brief(&opened),
    );
    text(&opened.body, "/run").clone_into(&mut actors.run);
    let before = received(stage).await?;

    let answer = actors
        .agent(Method::GET, "/desk/customers/c_1001", None)
        .await?;
    account.tell("read a customer", "200", &brief(&answer));
    let answer = actors.refund(1_200).await?;
    account.tell("refund 12.00: unattended", "201", &brief(&answer));
    let parked = actors.refund(25_000).await?;
    account.tell(
        "refund 250.00: parked",
        "403 approval_required",
        &brief(&parked),
    );
    let answer = actors.refund(250_000).await?;
    account.tell(
        "refund 2,500.00: denied",
        "403 denied_by_policy",
        &brief(&answer),
    );
    let answer = actors
        .agent(
            Method::POST,
            "/desk/refunds",
            Some(&json!({"customer": "c_1001", "amount": 5})),
        )
        .await?;
    account.tell(
        "refund with a wrong argument",
        "422 invalid_arguments",
        &brief(&answer),
    );

    approve(&actors, &mut account, &parked).await?;
    halt(&actors, &mut account).await?;

    let after = received(stage).await?;
    // A read, a small refund, the approved one, and one after the release: nothing else reached the API.
    account.tell(
        "requests that reached the API",
        "4",
        &(after - before).to_string(),
    );
    story(&actors, screen).await?;
    Ok(account.all_good)
}

async fn approve(
    actors: &Actors<'_>,
    account: &mut Account<'_>,
    parked: &client::Answer,
) -> anyhow::Result<()> {
    account
        .screen
        .lines(&[String::new(), "An operator looks at what waits:".to_owned()]);
    let approval = text(&parked.body, "/approval").to_owned();
    let shown = actors
        .operator(Method::GET, &format!("/v1/approvals/{approval}"), None)
        .await?;
    account.tell(
        "sees the exact amount, and the policy that parked it",
        "250.00 EUR",
        text(&shown.body, "/amount"),
    );
    let path = format!("/v1/approvals/{approval}/approve");
    let stale = json!({"digest": "hmac-sha256:0", "reason": "looks right"});
    let answer = actors.operator(Method::POST, &path, Some(&stale)).await?;
    account.tell(
        "approves something else than what is shown",
        "409 stale_digest",
        &brief(&answer),
    );
    let decision =
        json!({"digest": text(&shown.body, "/digest"), "reason": "the complaint is justified"});
    let answer = actors
        .operator(Method::POST, &path, Some(&decision))
        .await?;
    account.tell("approves it", "200", &brief(&answer));
    let call = format!("/v1/calls/{}", text(&parked.body, "/call"));
    let mut state = Value::Null;
    for _ in 0..100 {
        state = actors.agent(Method::GET, &call, None).await?.body;
        if !matches!(text(&state, "/state"), "parked" | "executing") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let status = state
        .get("status")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    account.tell(
        "the gateway executes it, without the agent",
        "completed 201",
        &format!("{} {status}", text(&state, "/state")),
    );
    let again = actors.refund(25_000).await?;
    account.tell(
        "the agent asks again: same answer, no second refund",
        "201",
        &brief(&again),
    );
    Ok(())
}

async fn halt(actors: &Actors<'_>, account: &mut Account<'_>) -> anyhow::Result<()> {
    account
        .screen
        .lines(&[String::new(), "At 3 a.m.:".to_owned()]);
    let body = json!({"scope": {"kind": "everything"}, "reason": "something is wrong"});
    let pulled = actors
        .operator(Method::POST, "/v1/kill-switches", Some(&body))
        .await?;
    account.tell("the kill switch is pulled", "201", &brief(&pulled));
    let answer = actors.refund(1_300).await?;
    account.tell("refund 13.00", "503 halted", &brief(&answer));
    let path = format!("/v1/kill-switches/{}", text(&pulled.body, "/kill_switch"));
    let released = actors
        .operator(
            Method::DELETE,
            &path,
            Some(&json!({"reason": "it was a false alarm"})),
        )
        .await?;
    account.tell("it is released", "200", &brief(&released));
    let answer = actors.refund(1_300).await?;
    account.tell("refund 13.00", "201", &brief(&answer));
    Ok(())
}

async fn received(stage: &Stage) -> anyhow::Result<u64> {
    let answer = client::get(stage.desk.address, "/_received", "").await?;
    answer
        .body
        .get("total")
        .and_then(Value::as_u64)
        .context("the sample API does not say what it received")
}

/// The run as the auditor's role reads it.
async fn story(actors: &Actors<'_>, screen: &Screen) -> anyhow::Result<()> {
    let url = std::fs::read_to_string(actors.stage.home.join(AUDITOR_URL))?;
    let mut auditor = PgConnection::connect(url.trim()).await?;
    let rows = sqlx::query(
        "SELECT c.tool, c.decision, COALESCE(array_to_string(c.reasons, ' '), '') AS reasons,
                COALESCE(c.outcome, '') AS outcome, c.status, c.arguments ->> 'amount_cents' AS amount,
                COALESCE(array_to_string(a.decided_by, ' '), '') AS decided_by
         FROM audit.calls AS c LEFT JOIN audit.approvals AS a USING (call_id)
         WHERE c.run_id = $1 ORDER BY c.received_at, c.call_id",
    )
    .bind(&actors.run)
    .fetch_all(&mut auditor)
    .await?;
    screen.lines(&[
        String::new(),
        format!("What the records say of {}:", actors.run),
        String::new(),
        format!(
            "  {:<20} {:>8}  {:<8} {:<13} {:>6}  {:<9} {}",
            "tool", "amount", "decision", "outcome", "status", "by", "reasons"
        ),
    ]);
    for row in rows {
        let tool: Option<String> = row.try_get("tool")?;
        let amount: Option<String> = row.try_get("amount")?;
        let (decision, outcome): (String, String) =
            (row.try_get("decision")?, row.try_get("outcome")?);
        let status: Option<i16> = row.try_get("status")?;
        let (reasons, decided_by): (String, String) =
            (row.try_get("reasons")?, row.try_get("decided_by")?);
        screen.event(&json!({
            "event": "audit", "tool": tool, "amount_cents": amount, "decision": decision, "outcome": outcome,
            "status": status, "reasons": reasons, "decided_by": decided_by,
        }));
        screen.lines(&[format!(
            "  {:<20} {:>8}  {:<8} {:<13} {:>6}  {:<9} {}",
            tool.unwrap_or_default(),
            amount.unwrap_or_default(),
            decision,
            outcome,
            status.map(|status| status.to_string()).unwrap_or_default(),
            decided_by,
            reasons
        )
        .trim_end()
        .to_owned()]);
    }
    auditor.close().await?;
    Ok(())
}
