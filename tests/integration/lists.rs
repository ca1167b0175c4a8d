//! Lists of the operators' listener: one rule for limits and cursors, held against each of them.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use toolgate::clock;

use crate::{
    delivery,
    lines::{FINANCE, decide, keyed},
    permissions::ALLOWED,
    receiver::{Behaviour, Receiver},
    support::{Answer, World, send},
};

/// Each list that is read page by page, a filter that leaves at least two of its rows, and one that it knows as well.
const LISTS: [(&str, &str, &str); 7] = [
    ("/v1/approvals", "state=pending", "agent=support-bot"),
    ("/v1/audit/entries", "agent=support-bot", "order=oldest"),
    ("/v1/delegations", "", ""),
    ("/v1/deliveries", "destination=people", "state=dead"),
    ("/v1/permissions", "agent=support-bot", "in_force=true"),
    ("/v1/runs", "agent=support-bot", "agent=platform-bot"),
    (
        "/v1/work",
        "kind=manual",
        "kind=manual&tool=desk.refunds.create",
    ),
];

/// A gateway with at least two rows in each list.
async fn filled() -> (World, Receiver) {
    let receiver = Receiver::start().await;
    receiver.always(Some(Behaviour::Answer("503 Service Unavailable")));
    let setup = delivery::with(&delivery::hook("people", &receiver, "")).config(FINANCE, ALLOWED);
    let setup = setup.tool(
        "desk.yaml",
        "body: { formats: [json, form] }",
        "while_halted: work_list\n    body: { formats: [json, form] }",
    );
    let world = setup.start().await;
    for amount in [25_000, 25_001, 25_002] {
        let run = world.run().await;
        world.parked(Some(&run), amount).await;
        let until = clock::now() + TimeDelta::hours(1);
        let lending = json!({"to": "bob", "roles": ["finance"], "until": until, "reason": "away"});
        let lend = world.operator("ada", Method::POST, "/v1/delegations");
        send(lend.json(&lending)).await.expect(201);
        let waiting = keyed(&world, None, amount + 10, &format!("ahead-{amount}")).await;
        let waiting = waiting.problem(403, "approval_required");
        let approval = waiting.body["approval"].as_str().unwrap();
        let next = json!({"next": {"calls": 1, "seconds": 600}});
        let decided = decide(&world, "ada", approval, "approve", next).await;
        assert!(decided.expect(200).body["permission"].is_string());
        world.ended(waiting.body["call"].as_str().unwrap()).await;
    }
    world.halt(json!({"kind": "everything"})).await;
    for amount in [1_201, 1_202, 1_203] {
        send(world.refund(None, amount))
            .await
            .problem(403, "by_hand");
    }
    (world, receiver)
}

async fn list(world: &World, path: &str, query: &str) -> Answer {
    send(world.operator("ada", Method::GET, &format!("{path}?{query}"))).await
}

#[tokio::test]
async fn every_list_has_the_same_limits_and_takes_only_its_own_cursors() {
    let (world, _receiver) = filled().await;
    let mut cursors = Vec::new();
    for (path, filter, _) in LISTS {
        let first = list(&world, path, &format!("{filter}&limit=1"))
            .await
            .expect(200);
        assert_eq!(first.body["data"].as_array().unwrap().len(), 1, "{path}");
        assert_eq!(first.body["has_more"], true, "{path}");
        let members: BTreeSet<&String> = first.body.as_object().unwrap().keys().collect();
        assert!(
            members.iter().eq(["cursor", "data", "has_more"].iter()),
            "{path}"
        );
        cursors.push(first.body["cursor"].as_str().unwrap().to_owned());
        let whole = list(&world, path, &format!("{filter}&limit=500"))
            .await
            .expect(200);
        assert_eq!(whole.body["has_more"], false, "{path}");
        assert_eq!(whole.body["cursor"], Value::Null, "{path}");
        for wrong in [
            "limit=0",
            "limit=-1",
            "limit=501",
            "limit=x",
            "cursor=",
            "cursor=appr_0",
            "colour=blue",
            "limit=1&limit=2",
        ] {
            let answer = list(&world, path, &format!("{filter}&{wrong}")).await;
            answer.problem(400, "malformed_body");
        }
    }
    for (at, (path, filter, other)) in LISTS.iter().enumerate() {
        for (whose, cursor) in cursors.iter().enumerate() {
            let answer = list(&world, path, &format!("{filter}&cursor={cursor}")).await;
            if whose == at {
                // Another size of page is still the same walk.
                answer.expect(200);
                let answer = list(&world, path, &format!("{filter}&limit=7&cursor={cursor}")).await;
                answer.expect(200);
            } else {
                answer.problem(400, "malformed_body");
            }
        }
        if !other.is_empty() {
            let answer = list(&world, path, &format!("{other}&cursor={}", cursors[at])).await;
            answer.problem(400, "malformed_body");
        }
    }
}

#[tokio::test]
async fn every_list_page_by_page_is_the_whole_list() {
    let (world, _receiver) = filled().await;
    for (path, filter, _) in LISTS {
        // The records grow by each reading: what the walk is of stands still.
        let filter = if path == "/v1/audit/entries" {
            "kind=run_opened"
        } else {
            filter
        };
        let whole = list(&world, path, &format!("{filter}&limit=500"))
            .await
            .expect(200);
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let query = format!("{filter}&limit=2{cursor}");
            let page = list(&world, path, &query).await.expect(200);
            found.extend(page.body["data"].as_array().unwrap().clone());
            let Some(next) = page.body["cursor"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(json!(found), whole.body["data"], "{path}");
        assert!(found.len() >= 3, "{path}");
    }
}

#[tokio::test]
async fn the_next_page_as_csv_is_of_the_same_list() {
    let (world, _receiver) = filled().await;
    let mut path = "/v1/work?kind=manual&agent=support-bot&format=csv&limit=2".to_owned();
    let mut calls = BTreeSet::new();
    for rows in [2, 1] {
        let page = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        let text = String::from_utf8(page.bytes.clone()).unwrap();
        assert_eq!(text.lines().count(), rows + 1, "{text}");
        for line in text.lines().skip(1) {
            assert!(
                line.contains("\"manual\"") && line.contains("\"support-bot\""),
                "{line}"
            );
            calls.insert(line.split(',').next().unwrap().to_owned());
        }
        let link = page.header("link").to_owned();
        let next = link
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(">; rel=\"next\""));
        path = next.unwrap_or_default().to_owned();
    }
    assert_eq!((calls.len(), path.as_str()), (3, ""));
}
