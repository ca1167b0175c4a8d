//! Messages over TLS: only to a receiver whose certificate a trusted authority has signed for its name, and that is in force.

use std::{path::PathBuf, process::Command, sync::Arc};

use reqwest::Method;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use toolgate::ids::CallId;

use crate::{
    delivery::{SECRET, with},
    receiver::{Receiver, now},
    support::{World, send},
};

/// An authority with its certificates, in a directory that goes with it.
struct Authority {
    place: PathBuf,
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.place));
    }
}

impl Authority {
    fn new() -> Self {
        let place = std::env::temp_dir().join(format!("tg-authority-{}", CallId::generate()));
        std::fs::create_dir(&place).unwrap();
        let authority = Self { place };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        authority
    }

    fn openssl(&self, arguments: &[&str]) {
        let made = Command::new("openssl")
            .current_dir(&self.place)
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
    }

    fn file(&self) -> String {
        self.place.join("ca.pem").display().to_string()
    }

    /// A certificate for a name, in force between two times, written `YYYYMMDDHHMMSSZ`.
    fn certificate(&self, name: &str, from: &str, to: &str) -> Arc<rustls::ServerConfig> {
        let extensions = format!("subjectAltName=DNS:{name}\nbasicConstraints=critical,CA:FALSE\n");
        std::fs::write(self.place.join("ext"), extensions).unwrap();
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=receiver",
            "-keyout",
            "key.pem",
            "-out",
            "request.pem",
        ]);
        // `openssl x509` of Debian 12 knows no dates of its own; `openssl ca` does.
        std::fs::write(self.place.join("index"), "").unwrap();
        std::fs::write(
            self.place.join("ca.conf"),
            "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\ndefault_md = sha256\n\
             policy = any\nunique_subject = no\n[any]\ncommonName = supplied\n",
        )
        .unwrap();
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.conf",
            "-cert",
            "ca.pem",
            "-keyfile",
            "ca.key",
            "-extfile",
            "ext",
            "-startdate",
            from,
            "-enddate",
            to,
            "-in",
            "request.pem",
            "-out",
            "cert.pem",
        ]);
        let chain = vec![CertificateDer::from_pem_file(self.place.join("cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.place.join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }

    /// One for `localhost` that is in force.
    fn good(&self) -> Arc<rustls::ServerConfig> {
        self.certificate("localhost", "20200101000000Z", "20991231000000Z")
    }
}

/// Destinations, each at a receiver of its own and trusting an authority, which give up after the first try.
async fn told(destinations: &[(&str, &Receiver, Option<&Authority>)]) -> World {
    let written: String = destinations
        .iter()
        .map(|(name, receiver, authority)| {
            let trusted = authority.map_or(String::new(), |authority| {
                format!("      ca_file: {}\n", authority.file())
            });
            format!(
                "  {name}:\n    webhook:\n      url: https://localhost:{}/hook\n      secrets: [\"${{env:HOOK_SECRET}}\"]\n      allow_private_addresses: true\n{trusted}    timeout_seconds: 3\n    retry_seconds: []\n    events: [approval.created]\n",
                receiver.address.port()
            )
        })
        .collect();
    with(&written).start().await
}

async fn ended(world: &World, destination: &str) -> Value {
    for _ in 0..500 {
        let path = format!("/v1/deliveries?destination={destination}");
        let listed = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        if listed.body["data"][0]["ended_at"].is_string() {
            return listed.body["data"][0].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the delivery to {destination} does not end");
}

#[tokio::test]
async fn a_webhook_goes_over_tls_to_whom_the_certificate_names_and_to_nobody_else() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = Receiver::with_tls(authority.good()).await;
    let untrusted = Receiver::with_tls(authority.good()).await;
    let foreign = Receiver::with_tls(other.good()).await;
    let (past, future) = (
        ("20200101000000Z", "20200102000000Z"),
        ("20980101000000Z", "20991231000000Z"),
    );
    let of = |name: &str, (from, to)| Receiver::with_tls(authority.certificate(name, from, to));
    let misnamed = of("receiver.example", ("20200101000000Z", "20991231000000Z")).await;
    let expired = of("localhost", past).await;
    let early = of("localhost", future).await;
    // What speaks no TLS at all.
    let plain = Receiver::start().await;
    let trusts = Some(&authority);
    let world = told(&[
        ("good", &good, trusts),
        ("untrusted", &untrusted, None),
        ("foreign", &foreign, trusts),
        ("misnamed", &misnamed, trusts),
        ("expired", &expired, trusts),
        ("early", &early, trusts),
        ("plain", &plain, trusts),
    ])
    .await;
    world.parked(None, 25_000).await;
    let delivered = ended(&world, "good").await;
    assert_eq!(delivered["state"], "delivered", "{delivered}");
    let got = good.has(1).await;
    assert!(got[0].verifies(SECRET, now()));
    for (name, receiver) in [
        ("untrusted", &untrusted),
        ("foreign", &foreign),
        ("misnamed", &misnamed),
        ("expired", &expired),
        ("early", &early),
        ("plain", &plain),
    ] {
        let refused = ended(&world, name).await;
        assert_eq!(refused["state"], "dead", "{name}: {refused}");
        assert_eq!(refused["attempts"], 1, "{name}");
        let error = refused["last_error"].as_str().unwrap();
        if name != "plain" {
            assert!(error.contains("certificate"), "{name}: {error}");
        }
        assert!(receiver.got().is_empty(), "{name} has got the message");
    }
}
