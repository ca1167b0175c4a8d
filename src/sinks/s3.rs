//! A bucket of an S3-compatible store: each checkpoint an object of its own, so that a store with object lock or versions keeps
//! every one of them even from whoever holds the credentials.

use std::{path::PathBuf, time::Duration};

use aws_credential_types::Credentials;
use aws_lc_rs::digest;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams,
        SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    Outgoing,
    client::{Client, NOTE_TYPE},
};
use crate::{clock, secrets::Secret, upstream::Base};

/// What stands unchanged in an object's path (RFC 3986 unreserved characters, and the slash).
const KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// Where objects are put.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The store, for instance [`default_endpoint`].
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// What the names of objects begin with.
    pub prefix: String,
    /// The id of the access key.
    pub access_key_id: String,
    /// The access key.
    pub secret_access_key: Secret,
    /// Certificates trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long one request may take.
    pub timeout: Duration,
}

/// The endpoint of the region's own store.
pub fn default_endpoint(region: &str) -> String {
    format!("https://s3.{region}.amazonaws.com")
}

pub(super) struct S3 {
    client: Client,
    /// Scheme and host, as they are signed.
    origin: String,
    /// Path of the endpoint and bucket.
    path: String,
    settings: S3Settings,
}

impl S3 {
    pub fn new(settings: &S3Settings) -> Result<Self, String> {
        let mut base = Base::parse(&settings.endpoint).map_err(|error| error.to_string())?;
        let path = std::mem::take(&mut base.base_path);
        let scheme = if base.https { "https" } else { "http" };
        Ok(Self {
            origin: format!("{scheme}://{}", base.host_header()),
            client: Client::new(base, settings.ca_file.as_ref(), settings.timeout)?,
            path: format!("{path}/{}", settings.bucket),
            settings: settings.clone(),
        })
    }

    /// The name sorts by start and size.
    pub async fn put(&self, checkpoint: &Outgoing) -> Result<(), String> {
        let name = format!(
            "{}{}/{:020}.checkpoint",
            self.settings.prefix, checkpoint.instance, checkpoint.size
        );
        let path = format!("{}/{}", self.path, utf8_percent_encode(&name, KEY));
        let headers = self
            .signed(&path, checkpoint.note.as_bytes())
            .map_err(|error| format!("the request cannot be signed: {error}"))?;
        let uri = path
            .parse()
            .map_err(|_error| "the object's name makes no path".to_owned())?;
        self.client
            .send(Method::PUT, uri, headers, &checkpoint.note)
            .await
    }

    /// The headers that let a PUT of this body in (AWS Signature Version 4). A bucket with object lock takes nothing without a
    /// checksum.
    fn signed(
        &self,
        path: &str,
        body: &[u8],
    ) -> Result<HeaderMap, Box<dyn std::error::Error + Send + Sync>> {
        let checksum = STANDARD.encode(digest::digest(&digest::SHA256, body));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, NOTE_TYPE);
        headers.insert("x-amz-checksum-sha256", HeaderValue::try_from(checksum)?);
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = Credentials::new(
            &self.settings.access_key_id,
            self.settings.secret_access_key.expose(),
            None,
            None,
            "toolgate.yaml",
        )
        .into();
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.settings.region)
            .name("s3")
            .time(clock::now().into())
            .settings(settings)
            .build()?
            .into();
        let named: Vec<(&str, &str)> = headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect();
        let request = SignableRequest::new(
            "PUT",
            format!("{}{path}", self.origin),
            named.into_iter(),
            SignableBody::Bytes(body),
        )?;
        let (instructions, _signature) = sign(request, &params)?.into_parts();
        let mut whole = headers.clone();
        for (name, value) in instructions.headers() {
            let mut value = HeaderValue::try_from(value)?;
            value.set_sensitive(true);
            whole.insert(HeaderName::try_from(name)?, value);
        }
        Ok(whole)
    }
}
