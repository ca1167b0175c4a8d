//! From a host name to a connection on which a request can be sent.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hyper::client::conn::http1;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{addresses::Addresses, exchange::Live, wire::Wire};

/// Heads beyond this are no API's answer; the limit keeps a hostile one from filling memory.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Everything needed to reach one API.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) addresses: Addresses,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) connect_timeout: Duration,
}

/// Why no TLS settings could be made.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The extra CA file cannot be read or holds no certificate.
    #[error("the CA file {path} cannot be used: {problem}")]
    CaFile {
        /// The file as it was configured.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The system offers no root certificates and none were configured.
    #[error(
        "no root certificates were found on this system; install ca-certificates or configure a CA file"
    )]
    NoRoots,
    /// The TLS library refused the settings.
    #[error("TLS could not be set up: {0}")]
    Setup(String),
}

/// TLS settings that trust the system's roots and, if given, the certificates in a PEM file. Reads files: to be
/// called at start-up.
pub fn tls_config(extra_ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    // Single broken certificates in a system's store are common and harmless: the rest is used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = extra_ca {
        add_ca_file(&mut roots, path)?;
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn add_ca_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let failed = |problem: String| TlsError::CaFile {
        path: path.display().to_string(),
        problem,
    };
    let mut added = 0_usize;
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| failed(error.to_string()))?;
        added += 1;
    }
    if added == 0 {
        return Err(failed("it holds no certificate in PEM form".to_owned()));
    }
    Ok(())
}

/// Opens a connection and brings it to where a request can be sent at once. The error is a reason for logs.
pub(super) async fn connect(target: &Target) -> Result<Live, String> {
    timeout(target.connect_timeout, connect_untimed(target))
        .await
        .unwrap_or_else(|_| Err("connecting took too long".to_owned()))
}

async fn connect_untimed(target: &Target) -> Result<Live, String> {
    let deadline = Instant::now() + target.connect_timeout;
    let stream = dial(target, deadline).await?;
    stream
        .set_nodelay(true)
        .map_err(|error| format!("the socket could not be set up: {error}"))?;
    let wire = match &target.tls {
        None => Wire::plain(stream),
        Some((connector, name)) => Wire::tls(
            connector
                .connect(name.clone(), stream)
                .await
                .map_err(|error| format!("the TLS handshake failed: {error}"))?,
        ),
    };
    let meter = wire.meter();
    let (sender, connection) = http1::Builder::new()
        .max_header_size(MAX_HEAD_BYTES)
        .handshake(wire)
        .await
        .map_err(|error| format!("the connection could not be set up: {error}"))?;
    Live::when_ready(sender, connection, meter).await
}

/// Resolves once and connects to exactly the addresses found, in their order. Each gets its share of the time
/// left, so that a silent first address does not use up the others' turn.
async fn dial(target: &Target, deadline: Instant) -> Result<TcpStream, String> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await
        .map_err(|error| format!("the host {} could not be resolved: {error}", target.host))?
        .collect();
    if let Some(address) = addresses
        .iter()
        .find(|address| !target.addresses.allow(address.ip()))
    {
        return Err(format!(
            "the host {} is at {}, which is no public address",
            target.host,
            address.ip()
        ));
    }
    let mut last: io::Error = io::ErrorKind::AddrNotAvailable.into();
    for (index, address) in addresses.iter().enumerate() {
        let turns_left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / turns_left;
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(format!("no connection to {}: {last}", target.host))
}
