//! Which tool a request's path means.

use super::*;

fn catalog() -> Catalog {
    let one = |name: &str, api: &str, method: &str, path: &str, input: &str| {
        format!(
            "  - {{name: {name}, description: x, api: {api}, method: {method}, path: '{path}', scope: 'a:b', \
             consequence: write, input: {input}}}\n"
        )
    };
    let id = "{type: object, required: [id], properties: {id: {type: string}}}";
    let text = [
        "tools:\n".to_owned(),
        one("desk.refunds.get", "desk", "GET", "/refunds/{id}", id),
        one("desk.refunds.delete", "desk", "DELETE", "/refunds/{id}", id),
        one(
            "desk.refunds.list",
            "desk",
            "GET",
            "/refunds/",
            "{type: object}",
        ),
        one("desk.root.get", "desk", "GET", "/", "{type: object}"),
        one("bank.deep.get", "bank", "GET", "/a/{id}/c", id),
    ]
    .concat();
    let (catalog, findings) = load_texts(&[&text]);
    assert!(findings.is_empty(), "{findings:?}");
    catalog
}

#[test]
fn a_path_means_one_tool_and_its_parameters_are_decoded() {
    let catalog = catalog();
    let matched = |method: Method, path: &str| {
        let matched = catalog.match_request("desk", &method, path).unwrap();
        (matched.contract.name.clone(), matched.params)
    };
    let with_id = |name: &str, id: &str| (name.to_owned(), vec![("id".to_owned(), id.to_owned())]);
    assert_eq!(
        matched(Method::GET, "/refunds/42"),
        with_id("desk.refunds.get", "42")
    );
    assert_eq!(
        matched(Method::DELETE, "/refunds/42"),
        with_id("desk.refunds.delete", "42")
    );
    assert_eq!(
        matched(Method::GET, "/refunds/%C3%A4%20%3F%25%7B"),
        with_id("desk.refunds.get", "ä ?%{")
    );
    assert_eq!(
        matched(Method::GET, "/refunds/"),
        ("desk.refunds.list".into(), vec![])
    );
    assert_eq!(matched(Method::GET, "/"), ("desk.root.get".into(), vec![]));
    // An encoded letter of a fixed segment is that letter.
    assert_eq!(
        matched(Method::GET, "/%72efunds/1"),
        with_id("desk.refunds.get", "1")
    );
}

#[test]
fn what_matches_nothing_says_why() {
    let catalog = catalog();
    let error = |api: &str, method: Method, path: &str| {
        catalog.match_request(api, &method, path).unwrap_err()
    };
    assert_eq!(error("shop", Method::GET, "/"), RouteError::UnknownApi);
    for path in [
        "/refunds",
        "/refunds/1/",
        "/refunds/1/2",
        "/Refunds/1",
        "/x",
        "/a//c/",
    ] {
        let error = error("desk", Method::GET, path);
        assert!(
            matches!(error, RouteError::Unknown | RouteError::BadPath { .. }),
            "{path}"
        );
    }
    assert_eq!(error("desk", Method::GET, "/refunds"), RouteError::Unknown);
    assert_eq!(
        error("desk", Method::GET, "/refunds/1/"),
        RouteError::Unknown
    );
    assert_eq!(
        error("bank", Method::GET, "/refunds/1"),
        RouteError::Unknown
    );
    assert_eq!(
        error("desk", Method::POST, "/refunds/1"),
        RouteError::MethodNotAllowed {
            allowed: vec![Method::DELETE, Method::GET]
        }
    );
    assert_eq!(error("desk", Method::GET, ""), RouteError::Unknown);
    for path in [
        "/refunds/..",
        "/refunds/%2e%2e",
        "/refunds/a%2Fb",
        "/refunds//1",
        "/refunds/1;x=2",
        "refunds/1",
    ] {
        assert!(
            matches!(error("desk", Method::GET, path), RouteError::BadPath { .. }),
            "{path}"
        );
    }
}
