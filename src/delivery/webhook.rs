//! Requests signed as Standard Webhooks 1.0.0 wants it: `v1`, HMAC-SHA-256 over id, time of the try and body, one signature for
//! each secret, so that a receiver can change from one to the other.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Failed, message::Message, post::Post};
use crate::{clock::Timestamp, config::Endpoint, secrets::Secret};

pub(super) struct Webhook {
    post: Post,
    keys: Vec<hmac::Key>,
}

impl Webhook {
    pub(super) fn new(
        endpoint: &Endpoint,
        secrets: &[Secret],
        timeout: Duration,
        connections: usize,
    ) -> Result<Self, String> {
        let keys = secrets
            .iter()
            .map(|secret| {
                let encoded = secret
                    .expose()
                    .strip_prefix("whsec_")
                    .unwrap_or(secret.expose());
                STANDARD
                    .decode(encoded)
                    .map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_error| "a signing secret is no base64".to_owned())?;
        if keys.is_empty() {
            return Err("there is no signing secret".to_owned());
        }
        Ok(Self {
            post: Post::new(endpoint, timeout, connections)?,
            keys,
        })
    }

    pub(super) async fn send(&self, message: &Message, now: Timestamp) -> Result<(), Failed> {
        let body = message.to_json().to_string();
        let timestamp = now.timestamp().to_string();
        let signatures = signatures(&self.keys, &message.event_id, &timestamp, &body);
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("webhook-id", &message.event_id),
            ("webhook-timestamp", &timestamp),
            ("webhook-signature", &signatures),
        ] {
            let value = HeaderValue::try_from(value)
                .map_err(|_invalid| Failed::because("the event has no valid id".to_owned()))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        self.post.send(headers, Bytes::from(body)).await
    }
}

/// INVARIANT: neither id nor time holds a full stop, so that the signed text can be read in one way only.
fn signatures(keys: &[hmac::Key], id: &str, timestamp: &str, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let signatures: Vec<String> = keys
        .iter()
        .map(|key| format!("v1,{}", STANDARD.encode(hmac::sign(key, signed.as_bytes()))))
        .collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the reference implementations of Standard Webhooks.
    #[test]
    fn a_signature_is_that_of_the_specifications_example() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        assert_eq!(
            signatures(
                &[key],
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "1614265330",
                r#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }
}
