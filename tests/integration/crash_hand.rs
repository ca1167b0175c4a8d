//! SIGKILL while people do calls by hand, and while messages are on their way: what was answered stands after the next start, no
//! call is both sent and done by hand, and no message is lost, changed or out of order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    crash::{Running, Stand, random, until},
    receiver::Receiver,
    support::{Answer, send},
};

/// The answer, if the gateway lived long enough to give one.
async fn tried(request: RequestBuilder) -> Option<(u16, Value)> {
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    let body = response.bytes().await.ok()?;
    Some((status, serde_json::from_slice(&body).ok()?))
}

/// The answer of a machine that may be so busy that a record comes too late: then it is asked again.
async fn patiently(request: RequestBuilder) -> Answer {
    for _ in 0..100 {
        let answer = send(request.try_clone().unwrap()).await;
        if answer.code() != "record_unavailable" {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing is recorded any more");
}

/// A stand whose refunds go to the work list while everything is halted, and halted it is; and the kill switch.
async fn by_hand() -> (Stand, Running, String) {
    let (stand, running) = Stand::new().await;
    running.kill_9();
    let contracts = stand.place.path.join("tools/desk.yaml");
    let text = std::fs::read_to_string(&contracts).unwrap();
    let body = "body: { formats: [json, form] }";
    let text = text.replace(body, &format!("while_halted: work_list\n    {body}"));
    std::fs::write(&contracts, text).unwrap();
    let running = stand.start().await;
    let halt = halt(&stand, &running).await;
    (stand, running, halt)
}

async fn halt(stand: &Stand, running: &Running) -> String {
    let halt = json!({"scope": {"kind": "everything"}, "reason": "test"});
    let pull = stand.operator(running, Method::POST, "/v1/kill-switches");
    let pulled = patiently(pull.json(&halt)).await.expect(201);
    pulled.body["kill_switch"].as_str().unwrap().to_owned()
}

/// So many refunds that wait to be done by hand; their amounts begin at this one and are their idempotency keys.
async fn listed(
    stand: &Stand,
    running: &Running,
    run: &str,
    amounts: std::ops::Range<u32>,
) -> Vec<(u32, String)> {
    let mut calls = Vec::new();
    for amount in amounts {
        let request = keyed(stand, running, run, amount);
        let answer = patiently(request).await.problem(403, "by_hand");
        calls.push((amount, answer.header("toolgate-call").to_owned()));
    }
    calls
}

/// A refund whose amount is its idempotency key.
fn keyed(stand: &Stand, running: &Running, run: &str, amount: u32) -> RequestBuilder {
    let request = stand.refund(running, amount).header("toolgate-run", run);
    request.header("idempotency-key", amount.to_string())
}

async fn state(stand: &Stand, running: &Running, call: &str) -> Value {
    let request = stand.agent(running, Method::GET, &format!("/v1/calls/{call}"));
    patiently(request).await.expect(200).body
}

fn finding(amount: u32) -> Value {
    json!({
        "found": "executed", "status": 201, "evidence": format!("ledger entry {amount}"), "note": "done in the back office",
        "result": {"refund": format!("hand_{amount}"), "customer": "c_1001", "amount_cents": amount, "currency": "EUR", "status": "succeeded"},
    })
}

fn work(stand: &Stand, running: &Running, call: &str, act: &str) -> RequestBuilder {
    stand.operator(running, Method::POST, &format!("/v1/work/{call}/{act}"))
}

async fn item(stand: &Stand, running: &Running, call: &str) -> Value {
    let request = stand.operator(running, Method::GET, &format!("/v1/work/{call}"));
    patiently(request).await.expect(200).body
}

/// Resolves an item that this operator has claimed.
async fn resolved(stand: &Stand, running: &Running, (amount, call): (u32, &str)) {
    let resolve = work(stand, running, call, "resolve").json(&finding(amount));
    let first = send(resolve.try_clone().unwrap()).await;
    if first.code() == "record_unavailable" {
        // It may have been recorded all the same, only too late.
        let again = patiently(resolve).await;
        assert!(matches!(again.status, 200 | 409), "{}", again.body);
    } else {
        first.expect(200);
    }
}

/// What the agent and the operators are told of a call that was resolved.
async fn stands_resolved(stand: &Stand, running: &Running, run: &str, (amount, call): (u32, &str)) {
    let state = state(stand, running, call).await;
    assert_eq!(state["state"], "completed", "{state}");
    assert_eq!(state["executed"], true);
    assert_eq!(state["executed_by"], "operator");
    assert_eq!(state["result"]["refund"], format!("hand_{amount}"));
    let again = patiently(keyed(stand, running, run, amount))
        .await
        .expect(201);
    assert_eq!(again.header("toolgate-call"), call);
    assert_eq!(again.header("toolgate-executed-by"), "operator");
    assert_eq!(again.body["refund"], format!("hand_{amount}"));
    let item = item(stand, running, call).await;
    assert_eq!(item["state"], "resolved", "{item}");
    assert_eq!(item["evidence"], format!("ledger entry {amount}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_during_hand_work_loses_no_claim_and_no_resolution() {
    let (stand, mut running, _) = by_hand().await;
    let stand = Arc::new(stand);
    let run = stand.open_run(&running).await;
    let mut outcomes = BTreeMap::<&str, u32>::new();
    for round in 0..6_u32 {
        let calls = listed(
            &stand,
            &running,
            &run,
            1_000 + round * 10..1_006 + round * 10,
        )
        .await;
        // What was answered with 200, by call.
        let answered: Arc<Mutex<HashMap<String, &str>>> = Arc::default();
        let people: Vec<_> = calls
            .iter()
            .map(|(amount, call)| {
                let claim = work(&stand, &running, call, "claim");
                let resolve = work(&stand, &running, call, "resolve").json(&finding(*amount));
                let (answered, call) = (Arc::clone(&answered), call.clone());
                tokio::spawn(async move {
                    for (act, request) in [("claimed", claim), ("resolved", resolve)] {
                        let Some((status, body)) = tried(request).await else {
                            return;
                        };
                        assert!(status == 200 || status == 503, "{act} {status} {body}");
                        if status != 200 {
                            return;
                        }
                        answered.lock().insert(call.clone(), act);
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(random(60_000))).await;
        running.kill_9();
        for person in people {
            person.await.unwrap();
        }
        running = stand.start().await;
        let answered = answered.lock().clone();
        for (amount, call) in &calls {
            let told = answered.get(call).copied().unwrap_or("nothing");
            *outcomes.entry(told).or_default() += 1;
            let item = item(&stand, &running, call).await;
            let state = item["state"].as_str().unwrap();
            match told {
                "resolved" => assert_eq!(state, "resolved", "{item}"),
                "claimed" => assert!(matches!(state, "claimed" | "resolved"), "{item}"),
                _ => assert!(matches!(state, "open" | "claimed"), "{item}"),
            }
            // Whatever had happened, it can be brought to its end, once.
            if state != "resolved" {
                patiently(work(&stand, &running, call, "claim"))
                    .await
                    .expect(200);
                resolved(&stand, &running, (*amount, call)).await;
            }
            let once_more = work(&stand, &running, call, "resolve").json(&finding(1));
            patiently(once_more).await.problem(409, "conflict");
            stands_resolved(&stand, &running, &run, (*amount, call)).await;
        }
    }
    assert_eq!(stand.upstream.by_call(), BTreeMap::new(), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_while_people_and_the_gateway_race_for_calls_lets_one_of_them_have_each() {
    let (stand, mut running, mut kill_switch) = by_hand().await;
    let stand = Arc::new(stand);
    let run = stand.open_run(&running).await;
    let mut claimed = BTreeMap::new();
    let mut all = Vec::new();
    for round in 0..6_u32 {
        let calls = listed(
            &stand,
            &running,
            &run,
            2_000 + round * 20..2_012 + round * 20,
        )
        .await;
        let path = format!("/v1/kill-switches/{kill_switch}");
        let release = stand.operator(&running, Method::DELETE, &path);
        let released = tokio::spawn(tried(release.json(&json!({"reason": "test"}))));
        let people: Vec<_> = calls
            .iter()
            .map(|(amount, call)| {
                let (amount, call) = (*amount, call.clone());
                let claim = work(&stand, &running, &call, "claim");
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(random(40_000))).await;
                    let (status, _) = tried(claim).await?;
                    (status == 200).then_some((call, amount))
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(random(60_000))).await;
        running.kill_9();
        released.await.unwrap();
        for person in people {
            claimed.extend(person.await.unwrap());
        }
        running = stand.start().await;
        // Released or not when it was killed, it is now; what nobody has claimed goes.
        let release = stand.operator(&running, Method::DELETE, &path);
        let (status, _) = tried(release.json(&json!({"reason": "test"})))
            .await
            .unwrap();
        assert!(matches!(status, 200 | 404), "{status}");
        for (_, call) in &calls {
            until("the call is somebody's", async || {
                let state = state(&stand, &running, call).await["state"].clone();
                !matches!(state.as_str(), Some("parked" | "executing"))
                    || item_is_claimed(&stand, &running, call).await
            })
            .await;
        }
        all.extend(calls);
        kill_switch = halt(&stand, &running).await;
    }
    let sent = stand.upstream.by_call();
    let both: BTreeSet<&String> = claimed
        .keys()
        .filter(|call| sent.contains_key(*call))
        .collect();
    assert!(both.is_empty(), "claimed and sent: {both:?}");
    for (amount, call) in &all {
        assert!(
            sent.get(call).is_none_or(|times| *times == 1),
            "{call} was sent twice"
        );
        if item_is_claimed(&stand, &running, call).await {
            // Also where the answer to the claim was lost.
            assert!(
                !sent.contains_key(call),
                "{call} was sent although it is claimed"
            );
            resolved(&stand, &running, (*amount, call)).await;
            stands_resolved(&stand, &running, &run, (*amount, call)).await;
        } else {
            // Killed between the record of it and the sending, it is one that nobody knows of.
            let state = state(&stand, &running, call).await;
            let is_lost = state["state"] == "indeterminate";
            assert!(
                sent.contains_key(call) || is_lost,
                "{call} is nobody's: {state}"
            );
        }
    }
    assert_eq!(stand.upstream.by_call(), sent);
}

async fn item_is_claimed(stand: &Stand, running: &Running, call: &str) -> bool {
    let item = item(stand, running, call).await;
    item["kind"] == "manual" && item["state"] == "claimed"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_during_deliveries_loses_changes_and_reorders_no_message() {
    let (stand, running) = Stand::new().await;
    running.kill_9();
    let receiver = Receiver::start().await;
    let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    std::fs::write(stand.place.path.join("hook.secret"), secret).unwrap();
    let mut config = std::fs::read_to_string(stand.place.config()).unwrap();
    config.push_str(&format!(
        "\ndestinations:\n  people:\n    webhook:\n      url: {}\n      secrets: [\"${{file:hook.secret}}\"]\n      allow_private_addresses: true\n    retry_seconds: [1, 1, 1, 1, 1, 1]\n",
        receiver.url()
    ));
    std::fs::write(stand.place.config(), config).unwrap();
    let stand = Arc::new(stand);
    let mut running = stand.start().await;
    // Approvals that the agent knows of, and those whose denial was answered.
    let (mut parked, mut denied) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..5_u32 {
        let run = stand.open_run(&running).await;
        let agents: Vec<_> = (0..8)
            .map(|at| {
                let amount = 20_000 + round * 10 + at;
                let park = stand.refund(&running, amount).header("toolgate-run", &run);
                let port = running.operators;
                let key = stand.operator_key.clone();
                let http = reqwest::Client::builder().no_proxy().build().unwrap();
                tokio::spawn(async move {
                    let (_, body) = tried(park).await?;
                    let approval = body["approval"].as_str()?.to_owned();
                    let at = format!("http://{port}/v1/approvals/{approval}");
                    let shown = tried(http.get(&at).bearer_auth(&key)).await;
                    let Some((200, shown)) = shown else {
                        return Some((approval, false));
                    };
                    let body = json!({"digest": shown["digest"], "reason": "test"});
                    let deny = http
                        .post(format!("{at}/deny"))
                        .bearer_auth(&key)
                        .json(&body);
                    let denied = tried(deny).await.is_some_and(|(status, _)| status == 200);
                    Some((approval, denied))
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(random(150_000))).await;
        running.kill_9();
        for agent in agents {
            if let Some((approval, is_denied)) = agent.await.unwrap() {
                if is_denied {
                    denied.insert(approval.clone());
                }
                parked.insert(approval);
            }
        }
        running = stand.start().await;
    }
    let told = |kind: &str| -> BTreeSet<String> {
        let got = receiver.got().into_iter().filter(|got| got.kind() == kind);
        got.map(|got| got.json()["data"]["approval"].as_str().unwrap().to_owned())
            .collect()
    };
    until("everything that was answered is told", async || {
        parked.is_subset(&told("approval.created")) && denied.is_subset(&told("approval.denied"))
    })
    .await;
    // The same event is the same message however often it came, and an approval's first is that it was made.
    let mut messages: BTreeMap<String, String> = BTreeMap::new();
    let mut events: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut known = BTreeSet::new();
    for got in receiver.got() {
        assert!(got.verifies(secret, crate::receiver::now()));
        let approval = got.json()["data"]["approval"].as_str().unwrap().to_owned();
        let body = messages
            .entry(got.id().to_owned())
            .or_insert_with(|| got.body.clone());
        assert_eq!(*body, got.body, "{} has changed", got.id());
        let id = events
            .entry((approval.clone(), got.kind()))
            .or_insert_with(|| got.id().to_owned());
        assert_eq!(
            id,
            got.id(),
            "{} of {approval} is told as two events",
            got.kind()
        );
        if got.kind() == "approval.created" {
            known.insert(approval);
        } else {
            assert!(
                known.contains(&approval),
                "{} of {approval} came first",
                got.kind()
            );
        }
    }
    drop(running);
}
