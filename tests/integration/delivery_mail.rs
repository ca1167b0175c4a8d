//! Mail through a real mail server (Exim), whose mailbox is read: over STARTTLS and TLS, with a password, and never unprotected
//! where it was not asked for.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    delivery::with,
    support::{World, send},
};

/// A mail server of its own, gone at the end.
struct MailServer {
    place: PathBuf,
    child: Child,
    starttls: u16,
    tls: u16,
    plain: u16,
}

impl Drop for MailServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.place));
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl MailServer {
    /// Accepts mail from whoever logs in over TLS, and on one port from anybody. Only root may say which config Exim reads.
    async fn start() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let place = PathBuf::from(format!(
            "/tmp/tg-mail-{}",
            toolgate::ids::CallId::generate()
        ));
        std::fs::create_dir(&place).unwrap();
        let made = Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args([
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .arg("-keyout")
            .arg(place.join("key.pem"))
            .arg("-out")
            .arg(place.join("cert.pem"))
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        std::fs::create_dir(place.join("spool")).unwrap();
        let (starttls, tls, plain) = (free_port(), free_port(), free_port());
        let directory = place.display();
        let config = format!(
            "primary_hostname = localhost
exim_user = nobody
exim_group = nogroup
never_users = root
keep_environment =
spool_directory = {directory}/spool
log_file_path = {directory}/log-%s
pid_file_path = {directory}/pid
daemon_smtp_ports = {starttls} : {tls} : {plain}
tls_on_connect_ports = {tls}
local_interfaces = 127.0.0.1
tls_advertise_hosts = ${{if eq{{$received_port}}{{{plain}}}{{}}{{*}}}}
tls_certificate = {directory}/cert.pem
tls_privatekey = {directory}/key.pem
acl_smtp_rcpt = check
host_lookup =
begin acl
check:
  accept authenticated = *
  accept condition = ${{if eq{{$received_port}}{{{plain}}}}}
  deny message = log in first
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  file = {directory}/mailbox
  user = nobody
  group = nogroup
  envelope_to_add
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{gateway}}}}{{eq{{$auth3}}{{mail-password}}}}}}}}
  server_advertise_condition = ${{if def:tls_in_cipher}}
"
        );
        let owned = Command::new("chown")
            .args(["-R", "nobody:nogroup"])
            .arg(&place)
            .status();
        assert!(owned.unwrap().success());
        // Exim takes a config of root's only.
        std::fs::write(place.join("exim.conf"), config).unwrap();
        let child = Command::new("/usr/sbin/exim4")
            .arg("-C")
            .arg(place.join("exim.conf"))
            .arg("-bdf")
            .spawn()
            .unwrap();
        let server = Self {
            place,
            child,
            starttls,
            tls,
            plain,
        };
        for _ in 0..250 {
            if tokio::net::TcpStream::connect(("127.0.0.1", plain))
                .await
                .is_ok()
            {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the mail server does not start");
    }

    fn mails(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.place.join("mailbox")).unwrap_or_default();
        let mut mails: Vec<String> = Vec::new();
        for line in text.lines() {
            if line.starts_with("From ") {
                mails.push(String::new());
            }
            if let Some(mail) = mails.last_mut() {
                mail.push_str(line);
                mail.push('\n');
            }
        }
        mails
    }

    async fn has(&self, count: usize) -> Vec<String> {
        for _ in 0..750 {
            let mails = self.mails();
            if mails.len() >= count {
                return mails;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = std::fs::read_to_string(self.place.join("log-main"));
        panic!("{} of {count} mails came: {log:?}", self.mails().len());
    }

    /// A destination at this server.
    fn destination(&self, name: &str, encryption: &str, port: u16, login: bool) -> String {
        let login = if login {
            "      username: gateway\n      password: ${env:MAIL_PASSWORD}\n"
        } else {
            ""
        };
        format!(
            "  {name}:\n    email:\n      host: localhost\n      port: {port}\n      encryption: {encryption}\n{login}      from: Toolgate <gate@example.com>\n      to: [finance@localhost, Ada <ada@localhost>]\n      ca_file: {}\n    retry_seconds: []\n",
            self.place.join("cert.pem").display()
        )
    }
}

/// One header of a mail, unfolded.
fn header<'a>(mail: &'a str, name: &str) -> Option<&'a str> {
    let head = mail.split("\n\n").next().unwrap();
    head.lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

async fn dead(world: &World) -> Vec<Value> {
    let answer = send(world.operator("ada", Method::GET, "/v1/deliveries?state=dead")).await;
    answer.expect(200).body["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn mail_tells_who_what_and_where_and_not_the_arguments() {
    let Some(server) = MailServer::start().await else {
        return;
    };
    let world = with(&server.destination("mail", "starttls", server.starttls, true))
        .variable("MAIL_PASSWORD", "mail-password")
        .start()
        .await;
    let body = json!({
        "triggered_by": "ticket:1\r\nBcc: thief@example.com",
        "purpose": "pay quickly\r\n\r\nSubject: Approved\r\nX-Injected: yes",
    });
    let run = send(world.agent(Method::POST, "/v1/runs").json(&body)).await;
    let run = run.expect(201).body["run"].as_str().unwrap().to_owned();
    let (_, approval) = world.parked(Some(&run), 24_680).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    let mut mails = server.has(4).await;
    // Two recipients, two copies of each.
    mails.retain(|mail| header(mail, "Envelope-to") == Some("finance@localhost"));
    assert_eq!(mails.len(), 2);
    let (created, denied) = (&mails[0], &mails[1]);
    assert_eq!(
        header(created, "Subject"),
        Some("[Toolgate] support-bot asks for desk.refunds.create: it waits for a"),
        "{created}"
    );
    assert!(
        created.contains(&format!(
            "https://gate.example.com/v1/approvals/{approval}\n"
        )),
        "{created}"
    );
    for told in ["support-bot", "money_movement", "finance", "UTC", "esmtpsa"] {
        assert!(created.contains(told), "{told}: {created}");
    }
    for mail in [created, denied] {
        for hidden in ["c_1001", "24680", "246.80"] {
            assert!(!mail.contains(hidden), "{mail}");
        }
        for name in ["Bcc", "X-Injected", "Cc"] {
            assert_eq!(header(mail, name), None, "{mail}");
        }
        assert!(
            !mail
                .lines()
                .any(|line| line == "Subject: Approved" || line.starts_with("X-Injected"))
        );
        assert!(mail.contains("> purpose: pay quickly"), "{mail}");
        assert_eq!(header(mail, "Auto-Submitted"), Some("auto-generated"));
        assert_eq!(
            header(mail, "References"),
            Some(&*format!("<{approval}@example.com>"))
        );
    }
    let mut owner = world.connect("superuser").await;
    let event: String =
        sqlx::query_scalar("SELECT event_id FROM toolgate.outbox WHERE type = 'approval.created'")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    assert_eq!(
        header(created, "Message-ID"),
        Some(&*format!("<{event}@example.com>"))
    );
    // Sent again, it is the same message.
    sqlx::query("UPDATE toolgate.deliveries SET state = 'dead', last_error = 'x' WHERE seq = (SELECT min(seq) FROM toolgate.outbox)")
        .execute(&mut owner)
        .await
        .unwrap();
    let id = dead(&world).await[0]["delivery"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/deliveries/{id}/redeliver");
    let request = world.operator("ada", Method::POST, &path);
    send(request.json(&json!({"reason": "test"})))
        .await
        .expect(200);
    let mails = server.has(6).await;
    let again = mails.last().unwrap();
    for name in ["Message-ID", "Date", "Subject"] {
        assert_eq!(header(again, name), header(created, name));
    }
}

#[tokio::test]
async fn mail_goes_over_tls_and_plain_to_the_own_machine() {
    let Some(server) = MailServer::start().await else {
        return;
    };
    let both = server.destination("tls", "tls", server.tls, true)
        + &server.destination("plain", "none", server.plain, false);
    let world = with(&both)
        .variable("MAIL_PASSWORD", "mail-password")
        .start()
        .await;
    world.halt(json!({"kind": "everything"})).await;
    let mails = server.has(4).await;
    assert!(mails.iter().any(|mail| mail.contains("with esmtpsa")));
    assert!(mails.iter().any(|mail| !mail.contains("with esmtps")));
    for mail in mails {
        assert_eq!(
            header(&mail, "Subject"),
            Some("[Toolgate] HALTED: everything")
        );
    }
}

#[tokio::test]
async fn mail_without_protection_or_to_a_stranger_is_not_sent() {
    let Some(server) = MailServer::start().await else {
        return;
    };
    // A server that takes mail from anybody and offers no STARTTLS, as if somebody in between had taken the offer away.
    let stripped = server.destination("stripped", "starttls", server.plain, false);
    let unknown = server
        .destination("unknown", "tls", server.tls, true)
        .lines()
        .filter(|line| !line.contains("ca_file"))
        .collect::<Vec<_>>()
        .join("\n")
        + "\n";
    let wrong = server
        .destination("wrong", "starttls", server.starttls, true)
        .replace("MAIL_PASSWORD", "WRONG_PASSWORD");
    let world = with(&(stripped + &unknown + &wrong))
        .variable("MAIL_PASSWORD", "mail-password")
        .variable("WRONG_PASSWORD", "guessed")
        .start()
        .await;
    world.halt(json!({"kind": "everything"})).await;
    let mut found = Vec::new();
    for _ in 0..500 {
        found = dead(&world).await;
        if found.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = |name: &str| {
        let one = found.iter().find(|one| one["destination"] == name);
        one.unwrap()["last_error"].as_str().unwrap().to_owned()
    };
    assert!(why("stripped").contains("STARTTLS"), "{}", why("stripped"));
    assert!(why("unknown").contains("not trusted"), "{}", why("unknown"));
    assert_eq!(why("wrong"), "the mail server answered 535");
    assert!(server.mails().is_empty());
}
