//! Where checkpoints go: real servers that fail, come back, and check what they are sent; and calls that never wait for them.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::State, routing::post};
use http::{HeaderMap, StatusCode};
use reqwest::Method;
use serde_json::Value;
use toolgate::{
    checkpoint::{Checkpoint, Note},
    signing,
};

use crate::support::{Setup, World, home, send};

fn with_sink(text: &str) -> Setup {
    Setup::shipped()
        .config("every_entries: 1000", "every_entries: 3")
        .config("every_seconds: 60", "every_seconds: 1")
        .config("  sinks:\n", &format!("  sinks:\n{text}"))
}

/// A checkpoint that this gateway signed.
fn read(database: &str, note: &[u8]) -> Checkpoint {
    let key = signing::load(&home(database).join("secrets/signing.key"))
        .unwrap()
        .key;
    let note = Note::parse(note).unwrap();
    note.signers([key.verifier()].into_iter()).unwrap();
    Checkpoint::parse(note.text()).unwrap()
}

/// What was uploaded: head and body.
type Received = Arc<Mutex<Vec<(HeaderMap, Vec<u8>)>>>;

#[derive(Clone, Default)]
struct Hook {
    up: Arc<Mutex<bool>>,
    asked: Arc<Mutex<u32>>,
    received: Received,
}

async fn hook(State(hook): State<Hook>, headers: HeaderMap, body: axum::body::Bytes) -> StatusCode {
    *hook.asked.lock().unwrap() += 1;
    if !*hook.up.lock().unwrap() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    hook.received.lock().unwrap().push((headers, body.to_vec()));
    StatusCode::NO_CONTENT
}

impl Hook {
    async fn start() -> (Self, SocketAddr) {
        let this = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/toolgate/hook", post(hook))
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (this, address)
    }
}

async fn ready(world: &World, listener: SocketAddr) -> (u16, String) {
    let answer = send(world.anybody(Method::GET, &format!("http://{listener}/readyz"))).await;
    (
        answer.status,
        String::from_utf8_lossy(&answer.bytes).into_owned(),
    )
}

#[tokio::test]
async fn a_webhook_gets_what_it_missed_and_no_call_waits_for_it() {
    let (hook, address) = Hook::start().await;
    let world = with_sink(&format!(
        "    hook:\n      webhook:\n        url: http://{address}/toolgate/hook?for=${{env:HOOK_TOKEN}}\n        \
         credential: {{ header: {{ name: Authorization, value: \"Bearer ${{env:HOOK_TOKEN}}\" }} }}\n",
    ))
    .variable("HOOK_TOKEN", "hook-token-1")
    .start()
    .await;
    for amount in 100..106 {
        send(world.refund(None, amount)).await.expect(201);
    }
    let said = async || {
        for _ in 0..100 {
            let (status, text) = ready(&world, world.gateway.operators).await;
            assert_eq!(status, 200, "a sink that fails stops nothing");
            if text.contains("checkpoint sink") {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("/readyz does not tell of the sink that fails");
    };
    let text = said().await;
    assert!(
        text.contains("checkpoint sink hook has failed since"),
        "{text}"
    );
    assert!(text.contains("503"), "{text}");
    assert!(!text.contains("hook-token-1"), "{text}");
    let (_, agents) = ready(&world, world.gateway.agents).await;
    assert_eq!(agents, "ok\n", "agents learn nothing of sinks");
    assert!(*hook.asked.lock().unwrap() > 0);

    *hook.up.lock().unwrap() = true;
    let database = world.database.clone();
    world.gateway.stop().await;
    let received = hook.received.lock().unwrap().clone();
    let mut last = 0;
    for (headers, body) in &received {
        assert_eq!(headers["authorization"], "Bearer hook-token-1");
        assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
        let checkpoint = read(&database, body);
        assert!(checkpoint.size > last, "in order");
        last = checkpoint.size;
    }
    // The file beside it has the same.
    let kept = std::fs::read(home(&database).join("checkpoints")).unwrap();
    let all: Vec<u8> = received.iter().flat_map(|(_, body)| body.clone()).collect();
    assert_eq!(kept, all);
}

/// moto, an S3 server that has authentication switched on after the bucket and a user have been made.
struct Moto {
    child: Child,
    address: String,
    key_id: String,
    secret: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python() -> String {
    std::env::var("TOOLGATE_TEST_PYTHON")
        .expect("run the tests with tests/run, which installs an S3 server for them")
}

/// Runs a program of boto3 as administrator, or as the user whose key is given.
fn boto(address: &str, key: (&str, &str), program: &str) -> Value {
    let said = Command::new(python())
        .arg("-c")
        .arg(format!(
            "import boto3, json\n\
             def client(name): return boto3.client(name, endpoint_url='http://{address}', region_name='eu-central-1',\n  \
             aws_access_key_id='{}', aws_secret_access_key='{}')\n{program}",
            key.0, key.1
        ))
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    serde_json::from_slice(&said.stdout).unwrap()
}

impl Moto {
    async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new(python())
            .args([
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                &port.to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self {
            child,
            address: format!("127.0.0.1:{port}"),
            key_id: String::new(),
            secret: String::new(),
        };
        for _ in 0..300 {
            if std::net::TcpStream::connect(&this.address).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let made = boto(
            &this.address,
            ("admin", "admin"),
            "s3, iam = client('s3'), client('iam')\n\
             s3.create_bucket(Bucket='kept', CreateBucketConfiguration={'LocationConstraint': 'eu-central-1'})\n\
             iam.create_user(UserName='toolgate')\n\
             iam.put_user_policy(UserName='toolgate', PolicyName='put', PolicyDocument=json.dumps({'Version': '2012-10-17',\n  \
             'Statement': [{'Effect': 'Allow', 'Action': 's3:*', 'Resource': '*'}]}))\n\
             key = iam.create_access_key(UserName='toolgate')['AccessKey']\n\
             print(json.dumps([key['AccessKeyId'], key['SecretAccessKey']]))",
        );
        this.key_id = made[0].as_str().unwrap().to_owned();
        this.secret = made[1].as_str().unwrap().to_owned();
        // From here on every request must be signed by somebody who may.
        reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .post(format!("http://{}/moto-api/reset-auth", this.address))
            .body("0")
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        this
    }

    /// The objects in the bucket, by name.
    fn objects(&self) -> Vec<(String, String)> {
        let found = boto(
            &self.address,
            (&self.key_id, &self.secret),
            "s3 = client('s3')\n\
             names = [o['Key'] for o in s3.list_objects_v2(Bucket='kept').get('Contents', [])]\n\
             print(json.dumps([[n, s3.get_object(Bucket='kept', Key=n)['Body'].read().decode()] for n in names]))",
        );
        serde_json::from_value(found).unwrap()
    }

    fn sink(&self) -> String {
        format!(
            "    vault:\n      s3:\n        endpoint: http://{}\n        region: eu-central-1\n        bucket: kept\n        \
             prefix: 'a b+c/'\n        access_key_id: {}\n        secret_access_key: ${{env:VAULT_SECRET}}\n",
            self.address, self.key_id
        )
    }
}

#[tokio::test]
async fn a_bucket_takes_what_is_signed_rightly_and_nothing_else() {
    let moto = Moto::start().await;
    // A wrong secret: the server refuses, and calls go on.
    let world = with_sink(&moto.sink())
        .variable("VAULT_SECRET", "not the secret")
        .start()
        .await;
    for amount in 100..104 {
        send(world.refund(None, amount)).await.expect(201);
    }
    let mut text = String::new();
    for _ in 0..100 {
        text = ready(&world, world.gateway.operators).await.1;
        if text.contains("checkpoint sink vault") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(text.contains("403"), "{text}");
    assert!(!text.contains("not the secret"), "{text}");
    assert_eq!(moto.objects(), []);

    // The next start has the right one.
    let secret = moto.secret.clone();
    let world = world
        .restart(|setup| setup.variable("VAULT_SECRET", secret))
        .await;
    for amount in 100..104 {
        send(world.refund(None, amount)).await.expect(201);
    }
    let database = world.database.clone();
    world.gateway.stop().await;
    let kept = std::fs::read(home(&database).join("checkpoints")).unwrap();
    let last = toolgate::checkpoint::notes(kept.as_slice()).last().unwrap();
    let last = read(&database, &last.unwrap().bytes);
    let instance = last.log().unwrap().1;
    let objects = moto.objects();
    assert!(objects.len() >= 2, "{objects:?}");
    for (name, note) in &objects {
        let checkpoint = read(&database, note.as_bytes());
        assert_eq!(checkpoint.log().unwrap().1, instance);
        assert_eq!(
            *name,
            format!("a b+c/{instance}/{:020}.checkpoint", checkpoint.size)
        );
    }
}
