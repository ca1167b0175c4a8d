//! A POST of each checkpoint to an address: a ticket system, a security team's collector, a witness.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::client::Client;
use crate::{
    secrets::Secret,
    upstream::{Base, BaseError},
};

/// Where checkpoints are posted.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// The whole URL, which may hold a token.
    pub url: Secret,
    /// What lets the request in.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// Certificates trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long one request may take.
    pub timeout: Duration,
}

impl WebhookSettings {
    /// Server, and path with query, of a URL.
    ///
    /// # Errors
    /// When it is none that can be posted to.
    pub fn target(url: &str) -> Result<(Base, Uri), BaseError> {
        let (address, query) = match url.split_once('?') {
            Some((address, query)) => (address, Some(query)),
            None => (url, None),
        };
        let mut base = Base::parse(address)?;
        let mut path = std::mem::take(&mut base.base_path);
        if address.ends_with('/') || path.is_empty() {
            path.push('/');
        }
        if let Some(query) = query {
            path = format!("{path}?{query}");
        }
        let uri = path.parse().map_err(|_error| BaseError::NotAUrl)?;
        Ok((base, uri))
    }
}

pub(super) struct Webhook {
    client: Client,
    uri: Uri,
    headers: HeaderMap,
}

impl Webhook {
    pub fn new(settings: &WebhookSettings) -> Result<Self, String> {
        let (base, uri) =
            WebhookSettings::target(settings.url.expose()).map_err(|error| error.to_string())?;
        Ok(Self {
            client: Client::new(base, settings.ca_file.as_ref(), settings.timeout)?,
            uri,
            headers: settings.header.iter().cloned().collect(),
        })
    }

    pub async fn post(&self, note: &str) -> Result<(), String> {
        self.client
            .send(Method::POST, self.uri.clone(), self.headers.clone(), note)
            .await
    }
}
