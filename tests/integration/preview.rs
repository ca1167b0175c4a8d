//! What a call will touch: shown to those who approve it, part of what they approve, and held against what is there before it is
//! sent.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::sync::Notify;
use toolgate::keys::KeyKind;

use crate::{
    probe::{self, PLANTED},
    support::{Answer, MASTER, Setup, World, send},
    wire::{Act, RawApi, json_answer},
};

const TOOLS: &str = r"
tools:
  - name: probe.accounts.get
    description: Reads an account.
    api: probe
    method: GET
    path: /accounts/{id}
    scope: probe.things:use
    consequence: read
    on_output_violation: report
    limits: { timeout_ms: 3000 }
    input: { type: object, required: [id], properties: { id: { type: string } } }
    output:
      type: object
      required: [id, balance]
      properties:
        id: { type: string }
        owner: { type: string, x-sensitivity: pii }
        balance: { type: number }
        seen_at: { type: string }
  - name: probe.accounts.close
    description: Closes an account for good.
    api: probe
    method: POST
    path: /accounts/{id}/close
    scope: probe.things:use
    consequence: destructive
    preview: { tool: probe.accounts.get, arguments: { id: /id } }
    input: { type: object, required: [id], properties: { id: { type: string }, note: { type: string } } }
";

const OWNER: &str = "planted.owner@example.org";

/// An API whose answer to reads the test decides.
struct Accounts {
    api: RawApi,
    read: Arc<Mutex<Act>>,
}

fn account(balance: f64, seen_at: &str) -> Act {
    let account = json!({
        "id": "a1", "owner": OWNER, "balance": balance, "seen_at": seen_at, "internal": "INTERNAL",
    });
    json_answer("200 OK", "", &account.to_string())
}

impl Accounts {
    async fn start() -> Self {
        let read = Arc::new(Mutex::new(account(10.1, "monday")));
        let shared = Arc::clone(&read);
        let api = RawApi::start(move |head| {
            if head.starts_with("GET") {
                shared.lock().unwrap().clone()
            } else {
                json_answer("200 OK", "", r#"{"closed":true}"#)
            }
        })
        .await;
        Self { api, read }
    }

    fn reads(&self, act: Act) {
        *self.read.lock().unwrap() = act;
    }

    fn setup(&self) -> Setup {
        probe::setup(&self.api).tool("accounts.yaml", "", TOOLS)
    }

    /// How many reads and how many closings have come since the last time.
    fn received(&self) -> (usize, usize) {
        let requests = self.api.requests();
        let reads = requests
            .iter()
            .filter(|request| request.starts_with("GET"))
            .count();
        (reads, requests.len() - reads)
    }
}

impl World {
    async fn close(&self) -> Answer {
        send(
            self.agent(Method::POST, "/probe/accounts/a1/close")
                .json(&json!({"note": "please"})),
        )
        .await
    }

    /// Parks a closing; gives the call and the approval.
    async fn closing(&self) -> (String, String) {
        let parked = self.close().await.problem(403, "approval_required");
        let text = |name: &str| parked.body[name].as_str().unwrap().to_owned();
        (text("call"), text("approval"))
    }

    async fn pending(&self) -> usize {
        let list = send(self.operator("ada", Method::GET, "/v1/approvals?state=pending"))
            .await
            .expect(200);
        list.body["data"].as_array().unwrap().len()
    }
}

#[tokio::test]
async fn approvers_see_what_will_be_touched_and_that_is_what_they_approve() {
    let accounts = Accounts::start().await;
    let mut world = accounts.setup().start().await;
    world.key(KeyKind::Operator, "grace").await;
    let (call, approval) = world.closing().await;
    assert_eq!(accounts.received(), (1, 0));
    let shown = world.shown("ada", &approval).await;
    let preview = &shown["preview"];
    assert_eq!(preview["tool"], "probe.accounts.get");
    assert_eq!(preview["status"], 200);
    assert_eq!(
        preview["answer"],
        json!({"id": "a1", "owner": OWNER, "balance": 10.1, "seen_at": "monday"}),
        "cut to the contract of the read"
    );
    let masked = world.shown("grace", &approval).await;
    assert_eq!(masked["preview"]["answer"]["owner"], "****@example.org");
    assert_eq!(masked["digest"], shown["digest"]);
    let seen = world
        .audit("SELECT operator, detail -> 'seen' FROM audit.entries WHERE kind = 'approval_viewed' ORDER BY seq")
        .await;
    assert_eq!(seen[0].get::<Value, _>(1), json!({ &approval: ["pii"] }));
    assert_eq!(seen[1].get::<Value, _>(1), json!({}));

    // The digest of the call alone is not the digest of what was shown.
    let row = world.call_row(&call).await;
    let path = format!("/v1/approvals/{approval}/approve");
    let blind = json!({"digest": row["arguments_digest"], "reason": "test"});
    send(world.operator("ada", Method::POST, &path).json(&blind))
        .await
        .problem(409, "stale_digest");
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(
        accounts.received(),
        (1, 1),
        "looked at once more, and sent once"
    );
    assert_eq!(
        world.shown("ada", &approval).await["preview"],
        Value::Null,
        "erased with the arguments"
    );

    let recorded = world
        .audit(&format!(
            "SELECT to_jsonb(a) FROM audit.approvals AS a WHERE approval_id = '{approval}'"
        ))
        .await;
    let recorded: Value = recorded[0].get(0);
    assert_eq!(recorded["digest"], shown["digest"]);
    assert_eq!(recorded["votes"][0]["digest"], shown["digest"]);
    let reads = world
        .audit(&format!(
            "SELECT call_id FROM audit.calls WHERE surface = 'preview' AND before_of = '{call}' AND outcome = 'completed' ORDER BY received_at"
        ))
        .await;
    assert_eq!(reads.len(), 2);
    assert_eq!(recorded["preview"]["call"], reads[0].get::<String, _>(0));
    assert_eq!(preview["call"], reads[0].get::<String, _>(0));
    let intent = world
        .audit(&format!("SELECT detail ->> 'preview' FROM audit.entries WHERE kind = 'intent' AND call_id = '{call}'"))
        .await;
    assert_eq!(intent[0].get::<String, _>(0), reads[1].get::<String, _>(0));
    let audit = world.whole_audit().await;
    for planted in ["planted.owner", "INTERNAL"] {
        assert!(!audit.contains(planted), "{planted}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_changed_between_the_last_vote_and_the_sending_voids_the_approval() {
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    let (call, approval) = world.closing().await;
    // The second look is answered only after the vote was counted.
    let (Act::Say(same), told) = (account(10.1, "monday"), Arc::new(Notify::new())) else {
        panic!("no answer");
    };
    let changed = same.replace("10.1", "99.9");
    let (first, second) = changed.split_at(20);
    accounts.reads(Act::Halves(
        first.to_owned(),
        Arc::clone(&told),
        second.to_owned(),
    ));
    let waiting = tokio::spawn({
        let request = world
            .agent(Method::POST, "/probe/accounts/a1/close")
            .header("prefer", "wait=20")
            .json(&json!({"note": "please"}));
        async move { send(request).await }
    });
    let voted = world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(voted.body["state"], "approved");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.state(&call).await["state"], "parked");
    told.notify_one();
    let state = world.ended(&call).await;
    assert_eq!(state["state"], "voided", "{state}");
    assert_eq!(state["executed"], false);
    let answer = waiting.await.unwrap().problem(403, "approval_voided");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("NOT executed.") && detail.contains("no longer what was shown"),
        "{detail}"
    );
    let shown = world.shown("ada", &approval).await;
    assert_eq!(shown["state"], "voided");
    assert_eq!(shown["explanation"], detail, "approvers are told why");
    let ended = format!(
        "kind = 'ended' AND call_id = '{call}' AND outcome = 'voided' AND detail ->> 'why' LIKE '%no longer what was shown%'"
    );
    assert_eq!(world.entries(&ended).await, 1);
    assert_eq!(accounts.received(), (2, 0));
}

#[tokio::test]
async fn only_what_the_contract_names_is_compared() {
    let accounts = Accounts::start().await;
    let world = accounts
        .setup()
        .tool(
            "accounts.yaml",
            "arguments: { id: /id } }",
            "arguments: { id: /id }, compare: [/id, /balance] }",
        )
        .start()
        .await;
    let (call, approval) = world.closing().await;
    accounts.reads(account(10.1, "tuesday"));
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(accounts.received(), (2, 1));
    let run = world.run().await;
    let again = world
        .agent(Method::POST, "/probe/accounts/a1/close")
        .header("toolgate-run", &run)
        .json(&json!({"note": "again"}));
    let parked = send(again).await.problem(403, "approval_required");
    accounts.reads(account(10.2, "tuesday"));
    let (call, approval) = (&parked.body["call"], &parked.body["approval"]);
    world
        .decide("ada", approval.as_str().unwrap(), "approve")
        .await
        .expect(200);
    let state = world.ended(call.as_str().unwrap()).await;
    assert_eq!(state["state"], "voided", "{state}");
    assert_eq!(accounts.received(), (2, 0));
}

/// Answers that show nothing of what a call will touch.
fn unusable() -> Vec<(&'static str, Act)> {
    let large = json!({"id": "a1", "balance": 1, "seen_at": "x".repeat(70_000)}).to_string();
    vec![
        ("nothing", Act::Close),
        (
            "an error",
            json_answer("500 Oops", "", &format!(r#"{{"error":"{PLANTED}"}}"#)),
        ),
        (
            "a refusal",
            json_answer("403 Forbidden", "", r#"{"id":"a1","balance":1}"#),
        ),
        (
            "another place",
            json_answer(
                "302 Found",
                "Location: http://127.0.0.1:1/accounts/a1\r\n",
                r#"{"id":"a1","balance":1}"#,
            ),
        ),
        (
            "what does not fit",
            json_answer("200 OK", "", &format!(r#"{{"id":"{PLANTED}"}}"#)),
        ),
        ("no JSON", json_answer("200 OK", "", "<html>")),
        ("too much", json_answer("200 OK", "", &large)),
    ]
}

#[tokio::test]
async fn without_an_answer_that_can_be_shown_nothing_is_parked() {
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    for (what, act) in unusable() {
        accounts.reads(act);
        let answer = world.close().await;
        assert_eq!(
            answer.code(),
            "preview_unavailable",
            "{what}: {}",
            answer.body
        );
        let row = world.refused(answer, 502, "preview_unavailable").await;
        assert_eq!(row["tool"], "probe.accounts.close");
        assert_eq!(world.pending().await, 0, "{what}");
        let (_, closed) = accounts.received();
        assert_eq!(closed, 0, "{what}");
    }
    assert!(!world.whole_audit().await.contains(PLANTED));
    // That there is nothing is something that can be shown, and compared.
    accounts.reads(json_answer(
        "404 Not Found",
        "",
        &format!(r#"{{"error":"{PLANTED}"}}"#),
    ));
    let (call, approval) = world.closing().await;
    let shown = world.shown("ada", &approval).await;
    assert_eq!(
        (&shown["preview"]["status"], &shown["preview"]["answer"]),
        (&json!(404), &Value::Null)
    );
    accounts.reads(account(10.1, "monday"));
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "voided");
    assert_eq!(accounts.received().1, 0);
}

#[tokio::test]
async fn what_cannot_be_looked_at_once_more_is_not_sent() {
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    for (what, act) in unusable() {
        accounts.reads(account(10.1, "monday"));
        let (call, approval) = world.closing().await;
        accounts.reads(act);
        world.decide("ada", &approval, "approve").await.expect(200);
        let state = world.ended(&call).await;
        assert_eq!(state["state"], "voided", "{what}: {state}");
        assert_eq!(accounts.received().1, 0, "{what}");
    }
}

#[tokio::test]
async fn the_read_needs_the_same_rights_as_any_other() {
    let accounts = Accounts::start().await;
    let world = accounts
        .setup()
        .policy(
            "no-reading.cedar",
            "",
            "@id(\"no-reading\") @description(\"Nobody reads accounts.\")\nforbid (principal, action == Action::\"probe.accounts.get\", resource);",
        )
        .start()
        .await;
    let answer = world.close().await;
    world.refused(answer, 502, "preview_unavailable").await;
    assert_eq!(accounts.received(), (0, 0));
    let refused = "kind = 'refusal' AND surface = 'preview' AND reasons = '{denied_by_policy}'";
    assert_eq!(world.entries(refused).await, 1);
}

#[tokio::test]
async fn who_asks_again_or_has_too_much_waiting_sets_off_no_read() {
    let accounts = Accounts::start().await;
    let world = accounts
        .setup()
        .config(
            "  support-bot:\n    owner: grace\n",
            "  support-bot:\n    owner: grace\n    max_pending_approvals: 1\n",
        )
        .start()
        .await;
    let (call, _) = world.closing().await;
    assert_eq!(accounts.received(), (1, 0));
    let (again, _) = world.closing().await;
    assert_eq!(again, call, "the same request is the same call");
    let other = world
        .agent(Method::POST, "/probe/accounts/a2/close")
        .json(&json!({}));
    send(other).await.problem(429, "rate_limited");
    assert_eq!(accounts.received(), (0, 0));
}

#[tokio::test]
async fn a_halt_of_the_read_holds_the_call_until_it_is_released() {
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    let (call, approval) = world.closing().await;
    accounts.received();
    let halt = world
        .halt(json!({"kind": "tool", "id": "probe.accounts.get"}))
        .await;
    let other = world
        .agent(Method::POST, "/probe/accounts/a2/close")
        .json(&json!({}));
    send(other).await.problem(503, "halted");
    assert_eq!(world.pending().await, 1);
    world.decide("ada", &approval, "approve").await.expect(200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.state(&call).await["state"], "parked");
    assert_eq!(accounts.received(), (0, 0));
    world.resume(&halt).await;
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(accounts.received(), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_is_not_of_call_and_preview_together_sends_nothing() {
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    let mut superuser = world.connect("superuser").await;
    let forge = |approval: &str| {
        AssertSqlSafe(format!(
            "UPDATE toolgate.approvals AS a SET digest = c.digest FROM toolgate.calls AS c
             WHERE c.call_id = a.call_id AND a.approval_id = '{approval}'"
        ))
    };
    // Before the call is taken up …
    let (call, approval) = world.closing().await;
    let halt = world
        .halt(json!({"kind": "tool", "id": "probe.accounts.get"}))
        .await;
    world.decide("ada", &approval, "approve").await.expect(200);
    sqlx::query(forge(&approval))
        .execute(&mut superuser)
        .await
        .unwrap();
    world.resume(&halt).await;
    assert_eq!(world.ended(&call).await["state"], "voided");
    // … and between the second look and the claim.
    let (call, approval) = world.closing().await;
    let (Act::Say(same), told) = (account(10.1, "monday"), Arc::new(Notify::new())) else {
        panic!("no answer");
    };
    let (first, second) = same.split_at(20);
    accounts.reads(Act::Halves(
        first.to_owned(),
        Arc::clone(&told),
        second.to_owned(),
    ));
    world.decide("ada", &approval, "approve").await.expect(200);
    tokio::time::sleep(Duration::from_millis(300)).await;
    sqlx::query(forge(&approval))
        .execute(&mut superuser)
        .await
        .unwrap();
    told.notify_one();
    let state = world.ended(&call).await;
    assert_eq!(state["state"], "voided", "{state}");
    assert_eq!(accounts.received().1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_that_is_too_old_when_the_call_has_been_claimed_is_made_again() {
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    let (call, approval) = world.closing().await;
    let (Act::Say(same), told) = (account(10.1, "monday"), Arc::new(Notify::new())) else {
        panic!("no answer");
    };
    let (first, second) = same.split_at(20);
    accounts.reads(Act::Halves(
        first.to_owned(),
        Arc::clone(&told),
        second.to_owned(),
    ));
    world.decide("ada", &approval, "approve").await.expect(200);
    tokio::time::sleep(Duration::from_millis(200)).await;
    // The database holds up the claim for longer than a look is good for.
    let mut superuser = world.connect("superuser").await;
    let mut lock = superuser.begin().await.unwrap();
    sqlx::query("SELECT FROM toolgate.approvals WHERE approval_id = $1 FOR UPDATE")
        .bind(&approval)
        .execute(&mut *lock)
        .await
        .unwrap();
    told.notify_one();
    tokio::time::sleep(Duration::from_millis(500)).await;
    accounts.reads(account(99.9, "monday"));
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    lock.commit().await.unwrap();
    let state = world.ended(&call).await;
    assert_eq!(state["state"], "failed", "{state}");
    assert_eq!(state["executed"], false);
    assert_eq!(state["code"], "approval_voided");
    assert_eq!(accounts.received(), (3, 0));
    let told = world.shown("ada", &approval).await["explanation"].clone();
    assert!(
        told.as_str().unwrap().contains("no longer what was shown"),
        "{told}"
    );
}

#[tokio::test]
async fn what_was_approved_under_an_older_master_secret_is_still_what_was_approved() {
    const NEWER: &str = "a newer master secret for tests only, long enough";
    let accounts = Accounts::start().await;
    let world = accounts.setup().start().await;
    let (call, approval) = world.closing().await;
    let world = world
        .restart(|setup| {
            setup
                .variable("TOOLGATE_MASTER_SECRET", NEWER)
                .variable("FORMER", MASTER)
                .config(
                    "master_secret: ${env:TOOLGATE_MASTER_SECRET}",
                    "master_secret: ${env:TOOLGATE_MASTER_SECRET}\nprevious_master_secrets: ['${env:FORMER}']",
                )
        })
        .await;
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(accounts.received(), (2, 1));
}

#[tokio::test]
async fn what_nobody_had_to_approve_needs_no_preview_also_after_a_halt() {
    let accounts = Accounts::start().await;
    let world = accounts
        .setup()
        .tool(
            "accounts.yaml",
            "consequence: destructive",
            "consequence: write\n    while_halted: work_list",
        )
        .start()
        .await;
    let halt = world
        .halt(json!({"kind": "tool", "id": "probe.accounts.close"}))
        .await;
    let listed = world.close().await.problem(403, "by_hand");
    world.resume(&halt).await;
    let call = listed.body["call"].as_str().unwrap();
    assert_eq!(world.ended(call).await["state"], "completed");
    assert_eq!(accounts.received(), (0, 1));
}

#[tokio::test]
async fn whoever_does_a_call_by_hand_sees_what_was_approved_with_it() {
    let accounts = Accounts::start().await;
    let world = accounts
        .setup()
        .config(
            "requires: [{ role: data-steward, approvals: 1 }]\n",
            "requires: [{ role: data-steward, approvals: 1 }]\n    execution: work_list\n",
        )
        .start()
        .await;
    let (call, approval) = world.closing().await;
    let shown = world.shown("ada", &approval).await["preview"].clone();
    world.decide("ada", &approval, "approve").await.expect(200);
    let path = format!("/v1/work/{call}/claim");
    for _ in 0..250 {
        let claimed = send(world.operator("bob", Method::POST, &path).json(&json!({}))).await;
        if claimed.status == 200 {
            assert_eq!(claimed.body["preview"], shown);
            assert_eq!(claimed.body["arguments"]["note"], "please");
            assert_eq!(accounts.received(), (1, 0));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{call} does not come onto the work list");
}
