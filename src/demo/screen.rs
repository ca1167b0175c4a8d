//! What the demo shows: progress on a terminal, plain lines elsewhere, JSON objects for scripts.

use std::{io::Write as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::is_terminal;

/// Where the demo writes.
pub(super) struct Screen {
    json: bool,
    colour: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            colour: !json && is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// One line that turns until it is done.
    pub fn step(&self, doing: &str) -> Step {
        if self.colour {
            let bar = ProgressBar::new_spinner().with_message(doing.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(80));
            return Step {
                bar: Some(bar),
                quiet: false,
            };
        }
        Step {
            bar: None,
            quiet: self.json,
        }
    }

    /// For scripts only.
    pub fn event(&self, event: &Value) {
        if self.json {
            put(&event.to_string());
        }
    }

    /// For people only.
    pub fn lines(&self, lines: &[String]) {
        if !self.json {
            for line in lines {
                put(line);
            }
        }
    }

    /// A mark that a person sees at once.
    pub fn mark(&self, good: bool) -> &'static str {
        match (good, self.colour) {
            (true, true) => "\u{1b}[32m✓\u{1b}[0m",
            (false, true) => "\u{1b}[31m✗\u{1b}[0m",
            (true, false) => "✓",
            (false, false) => "✗",
        }
    }
}

/// A step under way.
pub(super) struct Step {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Step {
    pub fn done(self, what: &str) {
        match self.bar {
            Some(bar) => bar.finish_with_message(what.to_owned()),
            None if self.quiet => {}
            None => put(what),
        }
    }
}

fn put(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever read it may have gone; the demo goes on.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
