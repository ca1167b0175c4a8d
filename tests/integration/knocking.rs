//! Whoever has no key that is in force makes no call, however they ask: attempts are counted in bounded room. Whoever is known
//! leaves an entry for each refusal.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{World, send};

async fn refused_calls(world: &World) -> usize {
    world
        .audit("SELECT 1 FROM audit.entries WHERE kind = 'refusal'")
        .await
        .len()
}

#[tokio::test]
async fn attempts_on_a_calls_own_route_are_counted_and_are_no_calls() {
    const ATTEMPTS: u64 = 200;
    let world = World::shipped().await;
    let routes = [
        (
            Method::POST,
            "/desk/refunds?planted=plain",
            "POST /{api}/{path}",
        ),
        (
            Method::POST,
            "/v1/tools/planted.plain/calls",
            "POST /v1/tools/{id}/calls",
        ),
        (Method::GET, "/planted/plain", "GET /{api}/{path}"),
    ];
    for (method, path, request) in &routes {
        for attempt in 0..ATTEMPTS {
            let url = format!("http://{}{path}", world.gateway.agents);
            let knock = world
                .anybody(method.clone(), &url)
                .bearer_auth(format!("tg_agent_planted-{attempt}"))
                .json(&json!({"arguments": {}}));
            let answer = send(knock).await.problem(401, "unauthenticated");
            assert_eq!(answer.header("toolgate-call"), "", "there is no such call");
            assert!(answer.body.get("call").is_none(), "{}", answer.body);
        }
        let told: Vec<Value> = world
            .told("agent_refused")
            .await
            .into_iter()
            .filter(|entry| entry["detail"]["request"] == *request)
            .collect();
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(told[0]["detail"]["source"], "127.0.0.1");
        assert_eq!(told[0]["reasons"], json!(["unauthenticated"]));
    }
    assert_eq!(refused_calls(&world).await, 0);
    // Who is known is told of each time, also where the run is none of theirs.
    for number in 1..=3 {
        let answer = send(world.agent(Method::GET, "/desk/nothing"))
            .await
            .problem(404, "unknown_tool");
        assert!(answer.header("toolgate-call").starts_with("call_"));
        let other_run = world
            .refund(None, 100)
            .header("toolgate-run", "run_01000000000000000000000000");
        let answer = send(other_run).await.problem(401, "unauthenticated");
        assert!(answer.header("toolgate-call").starts_with("call_"));
        // Refusals are queued.
        world.recorded(answer.header("toolgate-call")).await;
        assert_eq!(refused_calls(&world).await, number * 2);
    }
    // The end of the gateway ends the turn: each attempt is in a sum.
    let world = world.restart(|setup| setup).await;
    for (_, _, request) in routes {
        let attempts: u64 = world
            .told("agent_refused")
            .await
            .iter()
            .filter(|entry| entry["detail"]["request"] == request)
            .map(|entry| entry["detail"]["attempts"].as_u64().unwrap())
            .sum();
        assert_eq!(attempts, ATTEMPTS, "{request}");
    }
    assert!(!world.whole_audit().await.contains("lanted"));
}
