//! TLS against a local server with a certificate made on the spot by `openssl`.

use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    super::{SettingsError, TlsError, Upstream, tls_config},
    server::OK,
    *,
};

struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    fn make(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("toolgate-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let made = Command::new("openssl")
            .current_dir(&folder)
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .output()
            .expect("the openssl program, which makes the certificate for this test");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_file(self.file()).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.folder.join("key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Answers every request of at most one TLS record; the counter says how many came.
async fn serve(config: Arc<ServerConfig>) -> (u16, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, counter) = (acceptor.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut request = vec![0; 16_384];
                while stream
                    .read(&mut request)
                    .await
                    .is_ok_and(|length| length > 0)
                {
                    counter.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(OK.as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    (port, requests)
}

#[tokio::test]
async fn tls_is_spoken_with_a_trusted_server() {
    let certificate = Certificate::make("trusted");
    let (port, requests) = serve(certificate.server_config()).await;
    let mut settings = settings(&format!("https://localhost:{port}"));
    settings.tls = Some(tls_config(Some(&certificate.file())).unwrap());
    let upstream = Upstream::new(settings).unwrap();
    for _ in 0..3 {
        assert_eq!(send(&upstream).await.unwrap().body, "ok");
    }
    assert_eq!(upstream.idle_connections(), 1);
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

/// Does not let go of the permission before the server has the request.
struct UntilArrived(Arc<AtomicUsize>);

impl Gate for UntilArrived {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        let before = self.0.load(Ordering::SeqCst);
        let result = send();
        let patience = Instant::now() + Duration::from_secs(5);
        while self.0.load(Ordering::SeqCst) == before && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.0.load(Ordering::SeqCst), before + 1);
        Ok(result)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_requests_are_out_too_before_the_gate_is_let_go() {
    let certificate = Certificate::make("whole");
    let (port, requests) = serve(certificate.server_config()).await;
    let mut settings = settings(&format!("https://localhost:{port}"));
    settings.tls = Some(tls_config(Some(&certificate.file())).unwrap());
    let upstream = Upstream::new(settings).unwrap();
    let gate = UntilArrived(requests);
    for _ in 0..3 {
        upstream
            .send(post("x".repeat(1000)), LIMITS, &gate)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_that_cannot_prove_its_name() {
    let trusted = Certificate::make("right");
    let other = Certificate::make("wrong");
    let (port, requests) = serve(other.server_config()).await;
    for base in [
        format!("https://localhost:{port}"),
        format!("https://127.0.0.1:{port}"),
    ] {
        let mut settings = settings(&base);
        settings.tls = Some(tls_config(Some(&trusted.file())).unwrap());
        let error = send(&Upstream::new(settings).unwrap()).await.unwrap_err();
        assert!(
            matches!(&error, SendError::NotSent { reason } if reason.contains("TLS")),
            "{error:?}"
        );
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_not_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let certificate = Certificate::make("silent");
    let mut settings = settings(&format!("https://localhost:{port}"));
    settings.tls = Some(tls_config(Some(&certificate.file())).unwrap());
    settings.connect_timeout = Duration::from_millis(100);
    let error = send(&Upstream::new(settings).unwrap()).await.unwrap_err();
    assert!(matches!(error, SendError::NotSent { .. }), "{error:?}");
}

#[test]
fn tls_settings_are_checked() {
    let error = Upstream::new(settings("https://localhost")).err();
    assert_eq!(error, Some(SettingsError::TlsMissing));
    let missing = tls_config(Some(std::path::Path::new("/nowhere/ca.pem"))).unwrap_err();
    assert!(matches!(&missing, TlsError::CaFile { .. }), "{missing}");
}
