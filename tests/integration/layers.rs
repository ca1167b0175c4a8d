//! The order of the modules, held against the source: whoever stands lower knows nothing of what stands higher. Beside it,
//! who may know HTTP, SQL and the config file, and what every file owes its reader.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// From the ground up. A module uses what stands in a line above its own, and nothing of its own line.
const ORDER: [(&[&str], &str); 16] = [
    (
        &[
            "ids",
            "clock",
            "json",
            "secrets",
            "call",
            "diagnostics",
            "quorum",
            "visible",
            "upstream",
            "postgres",
            "tenure",
        ],
        "words and tools that know nothing of a gateway; the HTTP client and the database's process among them",
    ),
    (
        &[
            "reason",
            "entry",
            "keys",
            "policy",
            "yaml",
            "checkpoint",
            "sinks",
        ],
        "what a call can come to, and who may",
    ),
    (
        &[
            "config",
            "contracts",
            "redaction",
            "store",
            "signing",
            "metrics",
        ],
        "each has one outside format or one outside system to itself",
    ),
    (
        &["problem"],
        "what goes out, without what the detectors know",
    ),
    (
        &["audit", "killswitch", "strangers", "database"],
        "what is kept, on the store",
    ),
    (
        &["parked", "runs", "delivery", "issuing"],
        "what is kept through the recorder, or recorded beside it",
    ),
    (&["app"], "all of it joined"),
    (
        &["composition"],
        "who counts for what; held against votes and again before sending",
    ),
    (&["pipeline"], "the request path"),
    (
        &["approvals"],
        "a last vote sends a call down the request path again",
    ),
    (&["resolving"], "what people do instead of the gateway"),
    (&["workers"], "the same without anybody asking"),
    (&["http"], "the listeners' routes"),
    (&["server"], "the process"),
    (&["demo"], "a world around it"),
    (&["cli", "lib", "main"], "the way in"),
];

/// Who may know a library or a fact, beginning with the path below `src/`, and why.
struct Rule {
    what: &'static str,
    marks: &'static [&'static str],
    allowed: &'static [(&'static str, &'static str)],
}

const RULES: [Rule; 3] = [
    Rule {
        what: "HTTP as a server or client (axum, hyper)",
        marks: &["axum::", "hyper::", "hyper_util::"],
        allowed: &[
            ("server.rs", "listeners and connections"),
            ("http", "routes"),
            ("problem.rs", "refusals as answers"),
            ("pipeline/answer.rs", "answers"),
            (
                "pipeline.rs",
                "a request arrives with its body not yet read",
            ),
            (
                "pipeline/contract.rs",
                "reads that body, once its contract says how much of it",
            ),
            ("upstream", "the client"),
            ("demo", "the sample API and the demo's own client"),
        ],
    },
    Rule {
        what: "SQL",
        marks: &["sqlx::query", "query!", "query_as!", "query_scalar!"],
        allowed: &[
            ("store", "the only SQL of the gateway"),
            (
                "postgres",
                "asks the server it has started whether it is up, before there is anything to store",
            ),
            ("demo/once.rs", "plays the auditor"),
        ],
    },
    Rule {
        what: "reading the config file",
        marks: &["config::load", "config::read_file(", "Variables::"],
        allowed: &[
            ("cli", "`check`, `serve`, `keys`"),
            ("demo", "the shipped files"),
        ],
    },
];

/// The modules that know the config's types.
const CONFIG: [(&str, &str); 12] = [
    ("config", "is it"),
    ("app", "joins it with the rest"),
    ("database", "which database"),
    ("server", "addresses and limits"),
    ("demo", "changes the shipped one"),
    ("cli", "`check`, `serve`, `keys`"),
    ("runs", "`Agent`: who opens a run"),
    ("delivery", "its destinations, handed over by `app`"),
    ("pipeline", "`Agent` and `Credential`, handed out by `app`"),
    ("http", "`Agent`, handed out by `pipeline`"),
    (
        "resolving",
        "`ListFormat`, which the config names by a file's end",
    ),
    (
        "workers",
        "where the work list is copied to, handed over by `app`",
    ),
];

fn files() -> BTreeMap<String, String> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                found.insert(name.to_owned(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    assert!(found.len() > 80, "only {} files found", found.len());
    found
}

/// Without comments and without tests, which may look anywhere.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}

fn module(name: &str) -> &str {
    name.split(['/', '.']).next().unwrap()
}

fn is_in(name: &str, place: &str) -> bool {
    name == place
        || name.strip_suffix(".rs") == Some(place)
        || name.starts_with(&format!("{place}/"))
}

/// The modules named right behind `crate::`, in braces or not.
fn named(code: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect()
    };
    let mut found = Vec::new();
    for part in code.split("crate::").skip(1) {
        let Some(list) = part.strip_prefix('{') else {
            found.push(word(part));
            continue;
        };
        let mut depth = 1;
        let mut item = String::new();
        for letter in list.chars() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => found.push(word(&std::mem::take(&mut item))),
                _ if depth == 1 => item.push(letter),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        found.push(word(&item));
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn the_scan_sees_every_way_to_name_a_module() {
    let code = code(
        "use crate::{\n    app::{App, Tool},\n    clock,\n    store::{self, calls::{A, B}},\n};\nuse crate::ids::RunId;\n\
         // crate::cli\nfn f() { crate::pipeline::resume(); }\n#[cfg(test)]\nmod tests {\nuse crate::server;\n}\n",
    );
    assert_eq!(named(&code), ["app", "clock", "store", "ids", "pipeline"]);
}

#[test]
fn no_module_uses_one_that_stands_higher() {
    let level = |module: &str| ORDER.iter().position(|(names, _)| names.contains(&module));
    let mut wrong = Vec::new();
    for (name, text) in files().iter().filter(|(name, _)| !is_test(name)) {
        let Some(own) = level(module(name)) else {
            wrong.push(format!("src/{name}: {} stands in no line", module(name)));
            continue;
        };
        for used in named(&code(text)) {
            // A macro or constant of the crate's root is no module.
            let Some(other) = level(&used) else { continue };
            if used != module(name) && other >= own {
                wrong.push(format!(
                    "src/{name} uses crate::{used}, which stands higher or beside it: {}",
                    ORDER[other].1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn http_sql_and_the_config_are_known_where_they_belong() {
    let mut wrong = Vec::new();
    for rule in &RULES {
        let mut unused: Vec<&str> = rule.allowed.iter().map(|(place, _)| *place).collect();
        for (name, text) in files().iter().filter(|(name, _)| !is_test(name)) {
            let code = code(text);
            let Some(mark) = rule.marks.iter().find(|mark| mentions(&code, mark)) else {
                continue;
            };
            match rule.allowed.iter().find(|(place, _)| is_in(name, place)) {
                Some((place, _)) => unused.retain(|left| left != place),
                None => wrong.push(format!("src/{name} has {mark:?}: {}", rule.what)),
            }
        }
        for place in unused {
            wrong.push(format!(
                "{place} is allowed {} and has none of it",
                rule.what
            ));
        }
    }
    for (name, text) in files().iter().filter(|(name, _)| !is_test(name)) {
        let uses = named(&code(text)).iter().any(|used| used == "config");
        if uses && !CONFIG.iter().any(|(may, _)| *may == module(name)) {
            wrong.push(format!("src/{name} uses crate::config"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The mark at the beginning of a word: `hyper::` is not in `some_hyper::`.
fn mentions(code: &str, mark: &str) -> bool {
    code.match_indices(mark).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
    })
}

#[test]
fn a_file_says_why_it_exists_and_can_be_read_in_one_sitting() {
    let mut wrong = Vec::new();
    for (name, text) in files() {
        let lines = text.lines().count();
        if lines > 500 {
            wrong.push(format!("src/{name} has {lines} lines"));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!("src/{name} does not begin with //!"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
