//! Messages for Slack's incoming webhooks, and whatever takes the same JSON. Everything that is not this file's own text is
//! escaped as Slack wants it, so that no name and no agent can write a link, a mention or a channel's name.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

use super::{Failed, message::Message, post::Post};
use crate::config::Endpoint;

pub(super) struct Slack {
    post: Post,
}

impl Slack {
    pub(super) fn new(
        endpoint: &Endpoint,
        timeout: Duration,
        connections: usize,
    ) -> Result<Self, String> {
        Ok(Self {
            post: Post::new(endpoint, timeout, connections)?,
        })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), Failed> {
        let body = Bytes::from(to_json(message).to_string());
        self.post.send(HeaderMap::new(), body).await
    }
}

/// The message as blocks, with a text for where those are not shown. Fields are at most ten and words at most 500 characters,
/// which is within what Slack takes.
fn to_json(message: &Message) -> Value {
    let fields: Vec<Value> = message
        .facts
        .iter()
        .take(10)
        .map(|(label, value)| mrkdwn(format!("*{label}*\n{}", escaped(value))))
        .collect();
    let mut blocks = vec![
        json!({"type": "section", "text": mrkdwn(format!("*{}*", escaped(&message.title)))}),
        json!({"type": "section", "fields": fields}),
    ];
    if !message.agent_words.is_empty() {
        let words: Vec<String> = message
            .agent_words
            .iter()
            .map(|(label, value)| format!(">{label}: {}", escaped(value)))
            .collect();
        let text = format!(
            "The agent's own words, which nobody has checked:\n{}",
            words.join("\n")
        );
        blocks.push(json!({"type": "section", "text": mrkdwn(text)}));
    }
    if let Some(link) = &message.link {
        let text = format!("<{}|Open it in Toolgate>", escaped(link));
        blocks.push(json!({"type": "section", "text": mrkdwn(text)}));
    }
    let text = match &message.link {
        Some(link) => format!("{} {}", escaped(&message.title), escaped(link)),
        None => escaped(&message.title),
    };
    json!({
        "text": text,
        "blocks": blocks,
        // Nothing in it becomes a link, a mention or a preview by itself.
        "parse": "none",
        "link_names": false,
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

/// `verbatim`: addresses and names in it are not made into links.
fn mrkdwn(text: String) -> Value {
    json!({"type": "mrkdwn", "text": text, "verbatim": true})
}

/// The three characters that Slack reads as its own. Bold and the like are left: words stay within their quotation.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
