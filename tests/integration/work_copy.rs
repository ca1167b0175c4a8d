//! The copy of the work list on disk: what waits, without anything sensitive, for its owner alone, whole at every moment, and there
//! when nothing else is.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use toolgate::ids::CallId;

use crate::support::{Setup, World, send};

struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tg-copy-{}", CallId::generate()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Calls wait to be done by hand while everything is halted, and the list of them is copied every second.
fn copied_to(file: &std::path::Path) -> Setup {
    let mut setup = Setup::shipped().tool(
        "desk.yaml",
        "body: { formats: [json, form] }",
        "while_halted: work_list\n    body: { formats: [json, form] }",
    );
    setup.config.push_str(&format!(
        "\nwork_list_copy: {{ file: {}, every_seconds: 1 }}\n",
        file.display()
    ));
    setup
}

async fn by_hand(world: &World, amount_cents: u32) -> String {
    let body = json!({"customer": "c_1001", "amount_cents": amount_cents, "currency": "EUR", "note": "for planted@example.com"});
    let listed = send(world.agent(Method::POST, "/desk/refunds").json(&body))
        .await
        .problem(403, "by_hand");
    listed.header("toolgate-call").to_owned()
}

/// The calls in the copy, once they are these.
async fn shows(file: &std::path::Path, calls: &[&str]) -> Vec<Value> {
    let mut items = Vec::new();
    for _ in 0..500 {
        let text = std::fs::read_to_string(file).unwrap_or("[]".to_owned());
        // Never half a copy.
        items = serde_json::from_str::<Vec<Value>>(&text).unwrap();
        if items
            .iter()
            .map(|item| item["call"].as_str().unwrap())
            .eq(calls.iter().copied())
        {
            return items;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the copy does not show {calls:?}: {items:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copy_follows_the_list_and_holds_nothing_sensitive() {
    let place = Place::new();
    let file = place.file("work.json");
    // In the place of what an attempt before may have left somebody has laid a link.
    std::fs::write(place.file("elsewhere"), "untouched").unwrap();
    std::os::unix::fs::symlink(place.file("elsewhere"), place.file(".work.json.tmp")).unwrap();
    let world = copied_to(&file).start().await;
    world.halt(json!({"kind": "everything"})).await;
    let first = by_hand(&world, 1_201).await;
    let second = by_hand(&world, 1_202).await;
    let items = shows(&file, &[&first, &second]).await;
    assert_eq!(items[0]["recorded_arguments"]["amount_cents"], 1_201);
    assert_eq!(items[0]["state"], "open");
    assert!(items[0].get("arguments").is_none());
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("planted@example.com"), "{text}");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        std::fs::read_to_string(place.file("elsewhere")).unwrap(),
        "untouched"
    );

    let act = |act: &str, body: Value| {
        let path = format!("/v1/work/{first}/{act}");
        send(world.operator("ada", Method::POST, &path).json(&body))
    };
    act("claim", json!({})).await.expect(200);
    let found = json!({"found": "not_executed", "evidence": "looked", "note": "n"});
    act("resolve", found).await.expect(200);
    shows(&file, &[&second]).await;

    // The gateway is gone, and what was known stays.
    world.gateway.stop().await;
    shows(&file, &[&second]).await;
    let left: Vec<_> = std::fs::read_dir(&place.0).unwrap().collect();
    assert_eq!(left.len(), 2, "the copy and what was elsewhere: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copy_as_csv_is_what_the_listener_gives() {
    let place = Place::new();
    let file = place.file("work.csv");
    let world = copied_to(&file).start().await;
    world.halt(json!({"kind": "everything"})).await;
    let call = by_hand(&world, 1_201).await;
    let mut copied = String::new();
    for _ in 0..500 {
        copied = std::fs::read_to_string(&file).unwrap_or_default();
        if copied.contains(&call) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listed = send(world.operator("ada", Method::GET, "/v1/work?format=csv"))
        .await
        .expect(200);
    assert_eq!(copied, String::from_utf8(listed.bytes).unwrap());
    assert!(copied.contains(&call), "{copied}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_cannot_be_written_stops_nothing() {
    let place = Place::new();
    let file = place.file("not-there/work.json");
    let world = copied_to(&file).start().await;
    send(world.refund(None, 1_200)).await.expect(201);
    // Mended while it runs.
    std::fs::create_dir(place.file("not-there")).unwrap();
    world.halt(json!({"kind": "everything"})).await;
    let call = by_hand(&world, 1_201).await;
    shows(&file, &[&call]).await;
}
