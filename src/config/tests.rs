//! What a config may hold, and how each mistake is told.

use super::*;

const GOOD: &str = "\
listeners: { agents: 127.0.0.1:0, operators: 127.0.0.1:0 }
database: { built_in: { home: /tmp/x } }
master_secret: ${env:MASTER}
tools: tools
policies: policies
apis:
  desk:
    base_url: http://127.0.0.1:${env:PORT:-9000}
    credential: { header: { name: Authorization, value: \"Bearer ${env:TOKEN}\" } }
agents:
  support-bot: { owner: ada, groups: [support], scopes: ['desk.refunds:write'] }
operators:
  ada: { roles: [] }
  bob: { roles: [finance] }
  cyd: { roles: [finance], groups: [treasury] }
tiers:
  finance: { requires: [{ role: finance, approvals: 1 }], expires_in_seconds: 60 }
";

fn variables() -> Variables {
    Variables::default()
        .with("MASTER", "0123456789abcdef0123456789abcdef")
        .with("TOKEN", "t0ken")
}

fn findings(text: &str) -> Vec<String> {
    let file = SourceFile::new("/etc/toolgate/toolgate.yaml", text);
    let (config, findings) = load(&file, &variables());
    assert_eq!(config.is_none(), !findings.is_empty());
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_file_resolves_its_references() {
    let file = SourceFile::new("/etc/toolgate/toolgate.yaml", GOOD);
    let (config, found) = load(&file, &variables());
    assert!(found.is_empty(), "{found:?}");
    let config = config.unwrap();
    assert_eq!(config.apis["desk"].base_url, "http://127.0.0.1:9000");
    assert_eq!(config.tools, Path::new("/etc/toolgate/tools"));
    let shown = format!("{config:?}");
    assert!(!shown.contains("t0ken"), "a credential shows in Debug");
    assert!(
        !shown.contains("0123456789abcdef"),
        "the master secret shows in Debug"
    );
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let text = GOOD
        .replace("owner: ada", "owner: eve")
        .replace("approvals: 1", "approvals: 3")
        .replace("${env:TOKEN}", "${env:TOOLGATE_TEST_UNSET}");
    let found = findings(&text);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found
            .iter()
            .any(|text| text.contains("toolgate.yaml:9:") && text.contains("TOOLGATE_TEST_UNSET")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|text| text.contains("toolgate.yaml:11:") && text.contains("\"eve\"")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|text| text.contains("toolgate.yaml:17:") && text.contains("needs 3 people")),
        "{found:#?}"
    );
}

#[test]
fn master_secrets_that_are_short_stand_twice_or_stand_in_the_file_are_told_of() {
    let with = |list: &str| {
        GOOD.replace(
            "tools: tools",
            &format!("previous_master_secrets: [{list}]\ntools: tools"),
        )
    };
    let told = |list: &str| {
        let variables = variables()
            .with("OLD", "an older master secret of enough length")
            .with("OLDER", " an older master secret of enough length ")
            .with("SHORT", "short");
        let file = SourceFile::new("/etc/toolgate/toolgate.yaml", with(list).as_str());
        let (config, findings) = load(&file, &variables);
        assert_eq!(config.is_none(), !findings.is_empty());
        findings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told("'${env:OLD}'"), Vec::<String>::new());
    for (list, message) in [
        ("'${env:SHORT}'", "at least 32 characters"),
        ("'${env:MASTER}'", "stands twice"),
        ("'${env:OLD}', '${env:OLDER}'", "stands twice"),
        (
            "an older master secret in the file itself",
            "in the config file itself",
        ),
        ("'${env:TOOLGATE_TEST_UNSET}'", "TOOLGATE_TEST_UNSET"),
    ] {
        let found = told(list);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("/etc/toolgate/toolgate.yaml:4:") && found[0].contains(message),
            "{found:?}"
        );
    }
}

#[test]
fn unknown_fields_loose_booleans_and_duplicates_are_refused() {
    for bad in [
        GOOD.replace("tools: tools", "tools: tools\ntolos: x"),
        GOOD.replace("roles: [finance]", "roles: [finance], admin: yes"),
        format!("{GOOD}tools: again\n"),
        GOOD.replace("${env:MASTER}", "0123456789abcdef0123456789abcdef"),
        GOOD.replace("http://127.0.0.1", "ftp://127.0.0.1"),
        GOOD.replace("  desk:", "  v1:"),
        GOOD.replace("'desk.refunds:write'", "'everything'"),
    ] {
        let found = findings(&bad);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("/etc/toolgate/toolgate.yaml:"),
            "{found:?}"
        );
    }
}

/// The findings of a config with these tiers, errors and notes: message with line.
fn of_tiers(operators: &str, tiers: &str) -> Vec<String> {
    let start = GOOD.find("\noperators:").unwrap() + 1;
    let text = format!("{}operators:\n{operators}tiers:\n{tiers}", &GOOD[..start]);
    let file = SourceFile::new("toolgate.yaml", text.as_str());
    let (_, found) = load_for_check(&file, &variables());
    found
        .iter()
        .map(|finding| {
            let (_, line, column) = finding.place();
            assert!(line > 12 && column > 0, "{finding}");
            let kind = if finding.note { "note" } else { "error" };
            format!("{kind} {}", finding.message)
        })
        .collect()
}

const PEOPLE: &str = "  ada: { roles: [] }
  bob: { roles: [finance, chief], groups: [treasury] }
  cyd: { roles: [finance] }
  dan: { roles: [], groups: [treasury] }
  eve: { roles: [finance], groups: [treasury] }
";

#[test]
fn a_tier_is_held_against_people_who_each_count_once() {
    let fine = [
        "  t: { requires: [{ role: finance, approvals: 2 }], expires_in_seconds: 60 }\n",
        "  t: { requires: [{ role: finance, approvals: 1 }, { group: treasury, approvals: 2 }], expires_in_seconds: 60 }\n",
    ];
    for tiers in fine {
        assert_eq!(of_tiers(PEOPLE, tiers), Vec::<String>::new(), "{tiers}");
    }
    // Three in each, but four together, and one of them counts once.
    let found = of_tiers(
        PEOPLE,
        "  t: { requires: [{ role: finance, approvals: 3 }, { group: treasury, approvals: 2 }], expires_in_seconds: 60 }\n",
    );
    assert_eq!(
        found,
        [
            "error tier t needs 5 people, each counted once, and there are not enough: role finance has 3, group treasury has 3"
        ]
    );
    // Bob is all the chiefs there are and half of what the rest could be.
    let found = of_tiers(
        PEOPLE,
        "  t: { requires: [{ role: chief, approvals: 1 }, { role: finance, approvals: 3 }], expires_in_seconds: 60 }\n",
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("needs 4 people"), "{found:#?}");
}

#[test]
fn who_asked_for_a_call_may_leave_nobody_and_that_is_noted() {
    let owner_alone = PEOPLE.replace("ada: { roles: [] }", "ada: { roles: [legal] }");
    let found = of_tiers(
        &owner_alone,
        "  t: { requires: [{ role: legal, approvals: 1 }], expires_in_seconds: 60 }\n",
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("note tier t has nobody for calls of support-bot"),
        "{found:#?}"
    );
    let found = of_tiers(
        PEOPLE,
        "  t: { requires: [{ role: chief, approvals: 1 }], expires_in_seconds: 60 }\n",
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0]
            .starts_with("note tier t can be left without enough people for calls of support-bot"),
        "{found:#?}"
    );
}

#[test]
fn requirements_denials_and_escalations_that_mean_nothing_are_refused() {
    let tier = |text: &str| {
        of_tiers(
            PEOPLE,
            &format!("  t: {{ {text}, expires_in_seconds: 60 }}\n"),
        )
    };
    let finance = "requires: [{ role: finance, approvals: 1 }]";
    for (text, message) in [
        ("requires: []", "needs no approval at all"),
        (
            "requires: [{ role: finance, approvals: 0 }]",
            "needs no approval at all of role finance",
        ),
        (
            "requires: [{ approvals: 1 }]",
            "not exactly one of role and group",
        ),
        (
            "requires: [{ role: a, group: b, approvals: 1 }]",
            "not exactly one of role and group",
        ),
        (
            "requires: [{ role: finance, approvals: 1 }, { role: finance, approvals: 1 }]",
            "names role finance twice",
        ),
        (&format!("{finance}, denials: 0"), "needs 0 people to deny"),
        (
            &format!("{finance}, denials: 4"),
            "needs 4 people to deny, and 3 hold",
        ),
        (
            &format!("{finance}, escalates: {{ to: nowhere, after_seconds: 30 }}"),
            "which is no tier",
        ),
        (
            &format!("{finance}, escalates: {{ to: t, after_seconds: 30 }}"),
            "comes back to tier t",
        ),
        (
            &format!("{finance}, escalates: {{ to: t, after_seconds: 60 }}"),
            "at which nothing waits",
        ),
        (
            &format!("{finance}, standing_permissions: {{ max_calls: 0, max_seconds: 60 }}"),
            "have no sensible bounds",
        ),
        (
            &format!("{finance}, standing_permissions: {{ max_calls: 5, max_seconds: 86401 }}"),
            "have no sensible bounds",
        ),
    ] {
        let found = tier(text);
        assert!(
            found
                .iter()
                .any(|text| text.starts_with("error") && text.contains(message)),
            "{text}: {found:#?}"
        );
    }
    let chain = |length: u32| -> String {
        (0..=length)
            .map(|at| {
                let next = if at < length {
                    format!(", escalates: {{ to: t{}, after_seconds: 1 }}", at + 1)
                } else {
                    String::new()
                };
                format!("  t{at}: {{ {finance}, expires_in_seconds: 60{next} }}\n")
            })
            .collect()
    };
    assert_eq!(of_tiers(PEOPLE, &chain(4)), Vec::<String>::new());
    let found = of_tiers(PEOPLE, &chain(5));
    assert!(found[0].contains("over more than 4 steps"), "{found:#?}");
    let round = format!(
        "  a: {{ {finance}, expires_in_seconds: 60, escalates: {{ to: b, after_seconds: 1 }} }}\n  b: {{ {finance}, expires_in_seconds: 60, escalates: {{ to: a, after_seconds: 1 }} }}\n"
    );
    let found = of_tiers(PEOPLE, &round);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("comes back to tier a"), "{found:#?}");
}

#[test]
fn a_chain_of_escalations_adds_up_its_times() {
    let tiers = "  a: { requires: [{ role: finance, approvals: 1 }], expires_in_seconds: 60, escalates: { to: b, after_seconds: 10 } }
  b: { requires: [{ role: finance, approvals: 1 }], expires_in_seconds: 60, escalates: { to: c, after_seconds: 20 } }
  c: { requires: [{ role: finance, approvals: 1 }], expires_in_seconds: 60 }
";
    let start = GOOD.find("tiers:\n").unwrap();
    let text = format!("{}tiers:\n{tiers}", &GOOD[..start]);
    let file = SourceFile::new("toolgate.yaml", text.as_str());
    let (config, found) = load(&file, &variables());
    assert!(found.is_empty(), "{found:?}");
    let tiers = config.unwrap().tiers;
    let steps: Vec<(String, u64)> = tiers["a"]
        .escalations(&tiers)
        .into_iter()
        .map(|step| (step.to.to_string(), step.after.as_secs()))
        .collect();
    assert_eq!(steps, [("b".to_owned(), 10), ("c".to_owned(), 30)]);
}

const SINKS: &str = "\
checkpoints:
  installation: example.com/here
  sinks:
    disk: { file: { path: /tmp/x/checkpoints } }
    hook:
      webhook:
        url: https://example.com/hook?token=${env:TOKEN}
        credential: { header: { name: Authorization, value: \"Bearer ${env:TOKEN}\" } }
    vault: { s3: { region: eu-central-1, bucket: kept, access_key_id: id, secret_access_key: '${env:TOKEN}' } }
";

#[test]
fn sinks_are_read_and_their_credentials_never_show() {
    let file = SourceFile::new("/etc/toolgate/toolgate.yaml", format!("{GOOD}{SINKS}"));
    let (config, found) = load(&file, &variables());
    assert!(found.is_empty(), "{found:?}");
    let checkpoints = config.unwrap().checkpoints;
    assert_eq!(checkpoints.sinks.len(), 3);
    assert_eq!(checkpoints.every_entries, 1_000);
    assert_eq!(checkpoints.every, Duration::from_secs(60));
    assert_eq!(
        checkpoints.key_file,
        Path::new("/tmp/x/secrets/signing.key")
    );
    let shown = format!("{checkpoints:?}");
    assert!(shown.contains("s3.eu-central-1.amazonaws.com"), "{shown}");
    assert!(!shown.contains("t0ken"), "a credential shows in Debug");
}

#[test]
fn what_is_wrong_with_checkpoints_is_told_at_its_place() {
    for (from, to, line, says) in [
        (
            "example.com/here",
            "'a b'",
            19,
            "cannot name an installation",
        ),
        ("disk:", "Disk:", 21, "cannot be a sink's name"),
        ("https://example.com", "ftp://example.com", 24, "http"),
        ("bucket: kept", "bucket: 'a/b'", 26, "cannot be a bucket"),
        (
            "'${env:TOKEN}'",
            "clear",
            26,
            "stands in the config file itself",
        ),
        (
            "header: { name: Authorization, value",
            "query: { name: key, value",
            25,
            "no query credential",
        ),
        ("  sinks:", "  every_entries: 0\n  sinks:", 20, "zero"),
    ] {
        assert!(SINKS.contains(from));
        let text = format!("{GOOD}{}", SINKS.replacen(from, to, 1));
        let found = findings(&text);
        assert_eq!(found.len(), 1, "{to}: {found:#?}");
        assert!(
            found[0].contains(&format!("toolgate.yaml:{line}:")) && found[0].contains(says),
            "{to}: {found:#?}"
        );
    }
}
