//! The documents of both listeners and their pages: valid OpenAPI 3.1, whole, the same for everybody, and read without a network.
//! That every answer of every test fits them is held where tests send their requests.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use toolgate::ids::CallId;

use crate::{
    conformity::{Side, fits, resolved},
    support::{Answer, World, send},
};

const SIDES: [(Side, &str); 2] = [(Side::Agents, "/v1/docs"), (Side::Operators, "/docs")];

async fn open(world: &World, side: Side, path: &str) -> Answer {
    let address = match side {
        Side::Agents => world.gateway.agents,
        Side::Operators => world.gateway.operators,
    };
    send(world.anybody(Method::GET, &format!("http://{address}{path}"))).await
}

/// Every operation of a document: method, path, what is said of it.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            let operations = item.as_object().unwrap().iter();
            operations.map(move |(method, operation)| {
                (method.to_ascii_uppercase(), path.clone(), operation)
            })
        })
        .collect()
}

impl World {
    /// Method and path of every operation that a listener documents, and whether it takes a key.
    pub async fn documented(&self, side: Side) -> BTreeSet<(String, String, bool)> {
        let document = open(self, side, side.path()).await.expect(200).body;
        operations(&document)
            .into_iter()
            .map(|(method, path, operation)| (method, path, operation["security"].is_null()))
            .collect()
    }
}

#[tokio::test]
async fn the_documents_are_valid_openapi() {
    let world = World::shipped().await;
    for (side, _) in SIDES {
        let answer = open(&world, side, side.path()).await.expect(200);
        assert_eq!(answer.header("content-type"), "application/json");
        assert!(answer.body["openapi"].as_str().unwrap().starts_with("3.1."));
        let mut python = Command::new(std::env::var("TOOLGATE_TEST_PYTHON").unwrap())
            .args(["-c", "import json, sys; from openapi_spec_validator import validate; validate(json.load(sys.stdin))"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        python
            .stdin
            .take()
            .unwrap()
            .write_all(&answer.bytes)
            .unwrap();
        let judged = python.wait_with_output().unwrap();
        assert!(
            judged.status.success(),
            "{}",
            String::from_utf8_lossy(&judged.stderr)
        );
        // Another gateway with another world has the same.
    }
    let other = crate::support::Setup::shipped()
        .config("  ada:", "  ada:\n    groups: [treasury]")
        .start()
        .await;
    for (side, page) in SIDES {
        for path in [side.path(), page] {
            let one = open(&world, side, path).await;
            assert_eq!(one.bytes, open(&other, side, path).await.bytes, "{path}");
            let text = String::from_utf8(one.bytes).unwrap();
            for own in ["support-bot", "platform-bot", "desk-token", "treasury"] {
                assert!(!text.contains(own), "{path} tells of {own}");
            }
        }
    }
}

#[tokio::test]
async fn every_operation_says_what_it_is_and_its_examples_are_true() {
    let world = World::shipped().await;
    for (side, _) in SIDES {
        let document = open(&world, side, side.path()).await.expect(200).body;
        let tags: Vec<&Value> = document["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| &tag["name"])
            .collect();
        let mut ids = BTreeSet::new();
        for (method, path, operation) in operations(&document) {
            let what = format!("{method} {path}");
            assert!(
                operation["summary"]
                    .as_str()
                    .is_some_and(|text| text.len() > 5),
                "{what}"
            );
            assert!(
                ids.insert(operation["operationId"].as_str().unwrap()),
                "{what}"
            );
            assert!(tags.contains(&&operation["tags"][0]), "{what}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let about = parameter["description"].as_str().unwrap_or_default();
                assert!(about.len() > 5, "{what}: {}", parameter["name"]);
            }
            let named = path.matches('{').count();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            assert_eq!(
                parameters.filter(|one| one["in"] == "path").count(),
                named,
                "{what}"
            );
            for (kind, content) in operation["requestBody"]["content"]
                .as_object()
                .into_iter()
                .flatten()
            {
                assert!(
                    !content["example"].is_null(),
                    "{what} has no example of {kind}"
                );
                fits(
                    &document,
                    &content["schema"],
                    &content["example"],
                    &format!("the example of {what}"),
                );
            }
            for response in operation["responses"].as_object().unwrap().values() {
                let response = resolved(&document, response);
                for content in response["content"]
                    .as_object()
                    .into_iter()
                    .flat_map(|all| all.values())
                {
                    assert!(content["schema"].is_object(), "{what}");
                    if !content["example"].is_null() {
                        fits(
                            &document,
                            &content["schema"],
                            &content["example"],
                            &format!("the example of {what}"),
                        );
                    }
                }
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            assert!(
                schema["description"]
                    .as_str()
                    .is_some_and(|text| text.len() > 5),
                "{name} does not say what it is"
            );
        }
    }
}

#[tokio::test]
async fn the_pages_lead_nowhere_else_and_run_nothing() {
    let world = World::shipped().await;
    for (side, path) in SIDES {
        let page = open(&world, side, path).await.expect(200);
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        let policy = page.header("content-security-policy").to_owned();
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(
            !policy.contains("unsafe") && !policy.contains("http"),
            "{policy}"
        );
        let text = String::from_utf8(page.bytes).unwrap();
        assert!(
            !text.contains("<script") && !text.contains("src="),
            "{path}"
        );
        let mut links = 0;
        for link in text.split("href=\"").skip(1) {
            let link = link.split('"').next().unwrap();
            match link.strip_prefix('#') {
                Some(id) => assert!(
                    text.contains(&format!("id=\"{id}\"")),
                    "{link} leads nowhere"
                ),
                None => assert!(["openapi.json", "data:,"].contains(&link), "{link}"),
            }
            links += 1;
        }
        assert!(links > 10);
        let document = open(&world, side, side.path()).await.body;
        for (method, path, operation) in operations(&document) {
            assert!(
                text.contains(&format!("<code>{path}</code>")),
                "{method} {path}"
            );
            assert!(text.contains(&format!(
                "id=\"{}\"",
                operation["operationId"].as_str().unwrap()
            )));
        }
    }
}

/// What a browser did with a page: the page as it stood in the end, what it asked for, what it wrote to its console.
struct Seen {
    page: String,
    asked: Vec<String>,
    console: Vec<String>,
}

/// Opens a page in Chromium, without a window.
fn browse(url: &str) -> Seen {
    let place = std::env::temp_dir().join(format!("tg-browser-{}", CallId::generate()));
    std::fs::create_dir(&place).unwrap();
    let log = place.join("net.json");
    let ran = Command::new("timeout")
        .args([
            "60",
            "/usr/bin/chromium-headless-shell",
            "--no-sandbox",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", place.display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(url)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    let log: Value = serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
    drop(std::fs::remove_dir_all(&place));
    let started = &log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"];
    let events = log["events"].as_array().unwrap().iter();
    Seen {
        page: String::from_utf8(ran.stdout).unwrap(),
        asked: events
            .filter(|event| event["type"] == *started)
            .filter_map(|event| event["params"]["url"].as_str().map(str::to_owned))
            .collect(),
        console: said
            .lines()
            .filter(|line| line.contains(":CONSOLE"))
            .map(str::to_owned)
            .collect(),
    }
}

/// A page that does what ours must not, so that it is seen when it happens.
async fn careless_page() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let page = "<!doctype html><title>x</title><link rel=icon href='data:,'><script>console.error('oh')</script><img src='http://127.0.0.1:1/x.png'>";
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                page.len()
            );
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            drop(stream.write_all((head + page).as_bytes()).await);
        }
    });
    format!("http://{address}/")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_the_pages_and_asks_nobody_else() {
    let careless = careless_page().await;
    let seen = tokio::task::spawn_blocking(move || browse(&careless))
        .await
        .unwrap();
    assert!(
        seen.asked.contains(&"http://127.0.0.1:1/x.png".to_owned()),
        "{:?}",
        seen.asked
    );
    assert!(!seen.console.is_empty());

    let world = World::shipped().await;
    for (side, path) in SIDES {
        let address = match side {
            Side::Agents => world.gateway.agents,
            Side::Operators => world.gateway.operators,
        };
        let url = format!("http://{address}{path}");
        let seen = {
            let url = url.clone();
            tokio::task::spawn_blocking(move || browse(&url))
                .await
                .unwrap()
        };
        assert_eq!(seen.asked, [url], "{path}");
        assert!(seen.console.is_empty(), "{path}: {:?}", seen.console);
        let document = open(&world, side, side.path()).await.body;
        for (_, path, _) in operations(&document) {
            assert!(
                seen.page.contains(&format!("<code>{path}</code>")),
                "{path}"
            );
        }
    }
}
