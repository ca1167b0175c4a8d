//! When connections are used again, and what is certain when they are not what they seemed.

use std::{net::TcpListener, time::Duration};

use super::{
    super::{Upstream, connect, exchange},
    server::{OK, Server, pause},
    *,
};

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::always(OK);
    let upstream = upstream(server.port);
    for _ in 0..5 {
        assert_eq!(send(&upstream).await.unwrap().body, "ok");
    }
    assert_eq!((server.connections(), server.requests()), (1, 5));
    assert_eq!(upstream.idle_connections(), 1);
}

#[tokio::test]
async fn a_request_goes_out_as_it_was_given() {
    let (heard, hear) = std::sync::mpsc::channel();
    let server = Server::start(move |mut client| {
        heard.send(client.request().unwrap()).unwrap();
        client.say(OK);
    });
    let mut request = post("{}");
    for (name, value) in [
        ("x-own", "kept"),
        ("connection", "x-named"),
        ("x-named", "gone"),
        ("transfer-encoding", "chunked"),
        ("content-length", "700"),
        ("expect", "100-continue"),
        ("host", "elsewhere"),
        ("accept-encoding", "gzip"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let upstream = upstream(server.port);
    upstream.send(request, LIMITS, &Open).await.unwrap();
    let text = hear.recv().unwrap();
    assert!(
        text.starts_with("POST /base/things?a=b HTTP/1.1\r\n"),
        "{text}"
    );
    assert!(text.contains(&format!("host: 127.0.0.1:{}\r\n", server.port)));
    assert!(text.contains("x-own: kept") && text.contains("accept-encoding: identity"));
    assert!(text.contains("content-length: 2\r\n") && text.ends_with("\r\n\r\n{}"));
    for gone in [
        "connection",
        "x-named",
        "transfer-encoding",
        "expect",
        "elsewhere",
        "gzip",
    ] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
}

#[tokio::test]
async fn only_path_and_query_of_a_request_count() {
    let (heard, hear) = std::sync::mpsc::channel();
    let server = Server::start(move |mut client| {
        while let Some(request) = client.request() {
            heard.send(request).unwrap();
            client.say(OK);
        }
    });
    let upstream = Upstream::new(settings(&format!("http://127.0.0.1:{}", server.port))).unwrap();
    for (uri, line) in [
        ("/a?b=c", "GET /a?b=c HTTP/1.1"),
        ("http://elsewhere.invalid/a", "GET /a HTTP/1.1"),
        ("http://elsewhere.invalid", "GET / HTTP/1.1"),
        (
            "//elsewhere.invalid/a",
            "GET //elsewhere.invalid/a HTTP/1.1",
        ),
    ] {
        // A length that is not the body's would swallow the next request.
        let request = Request::get(uri).header("content-length", "40");
        let request = request.body(Full::default()).unwrap();
        upstream.send(request, LIMITS, &Open).await.unwrap();
        let text = hear.recv().unwrap();
        assert_eq!(text.lines().next(), Some(line));
        assert!(!text.contains("content-length"));
        assert!(text.contains(&format!("host: 127.0.0.1:{}", server.port)));
    }
}

#[tokio::test]
async fn a_connection_that_ended_while_idle_is_not_used() {
    let server = Server::once(OK);
    let upstream = upstream(server.port);
    for round in 1..=3 {
        send(&upstream).await.unwrap();
        settle_down().await;
        assert_eq!((server.connections(), server.requests()), (round, round));
    }
}

#[tokio::test]
async fn a_connection_with_unsolicited_bytes_is_not_used() {
    let server = Server::start(|mut client| {
        client.request();
        client.say(OK);
        pause(10);
        client.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged");
        client.hold();
    });
    let upstream = upstream(server.port);
    assert_eq!(send(&upstream).await.unwrap().body, "ok");
    settle_down().await;
    assert_eq!(send(&upstream).await.unwrap().body, "ok");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn bytes_behind_an_answer_end_the_connection() {
    let server = Server::always(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    );
    let upstream = upstream(server.port);
    assert_eq!(send(&upstream).await.unwrap().body, "ok");
    assert_eq!(upstream.idle_connections(), 0);
}

#[tokio::test]
async fn a_request_on_a_connection_that_closes_as_it_arrives_is_lost_and_not_repeated() {
    let server = Server::start(|mut client| {
        client.request();
        client.say(OK);
        client.request();
    });
    let upstream = upstream(server.port);
    send(&upstream).await.unwrap();
    let error = send(&upstream).await.unwrap_err();
    assert!(
        matches!(error, SendError::Lost { timeout: false, .. }),
        "{error:?}"
    );
    settle_down().await;
    assert_eq!((server.connections(), server.begun()), (1, 2));
}

#[tokio::test]
async fn a_request_that_finds_its_connection_ended_comes_back_unsent() {
    let server = Server::start(|_| pause(20));
    let upstream = upstream(server.port);
    let mut live = connect::connect(&upstream.shared.target)
        .await
        .ok()
        .unwrap();
    settle_down().await;
    let deadline = std::pin::pin!(tokio::time::sleep(Duration::from_secs(5)));
    let failure = exchange::exchange(&mut live, post("{}"), &Open, deadline)
        .await
        .err();
    assert!(matches!(
        failure,
        Some(exchange::Failure::Unsent {
            request: Some(_),
            ..
        })
    ));
    assert_eq!(server.begun(), 0);
}

#[tokio::test]
async fn a_refused_connection_is_not_sent() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = send(&upstream(port)).await.unwrap_err();
    assert!(matches!(&error, SendError::NotSent { .. }), "{error:?}");
    assert!(error.certainly_not_sent());
}

#[tokio::test]
async fn an_unresolvable_host_is_not_sent() {
    let upstream = Upstream::new(settings("http://does-not-exist.invalid")).unwrap();
    let error = send(&upstream).await.unwrap_err();
    assert!(matches!(error, SendError::NotSent { .. }), "{error:?}");
}

#[tokio::test]
async fn waiting_for_a_connection_counts_and_is_not_sent() {
    let server = Server::start(|mut client| client.hold());
    let mut settings = settings(&format!("http://127.0.0.1:{}", server.port));
    settings.max_connections = 1;
    let upstream = Upstream::new(settings).unwrap();
    let first = tokio::spawn({
        let upstream = upstream.clone();
        async move { send(&upstream).await }
    });
    settle_down().await;
    let limits = SendLimits {
        timeout: Duration::from_millis(50),
        ..LIMITS
    };
    let error = upstream.send(post("{}"), limits, &Open).await.unwrap_err();
    assert!(matches!(error, SendError::NotSent { .. }), "{error:?}");
    assert_eq!(server.connections(), 1);
    // Cancelling the first closes its connection and frees its place.
    first.abort();
    assert!(first.await.is_err());
    let error = upstream.send(post("{}"), limits, &Open).await.unwrap_err();
    assert!(
        matches!(error, SendError::Lost { timeout: true, .. }),
        "{error:?}"
    );
    assert_eq!((server.connections(), upstream.idle_connections()), (2, 0));
}

#[tokio::test]
async fn connections_idle_for_too_long_are_closed() {
    let server = Server::always(OK);
    let mut settings = settings(&format!("http://127.0.0.1:{}", server.port));
    settings.idle_timeout = Duration::from_millis(20);
    let upstream = Upstream::new(settings).unwrap();
    send(&upstream).await.unwrap();
    settle_down().await;
    send(&upstream).await.unwrap();
    assert_eq!(server.connections(), 2);
    settle_down().await;
    upstream.close_stale();
    assert_eq!(upstream.idle_connections(), 0);
}

#[tokio::test]
async fn no_more_connections_are_kept_than_allowed() {
    let server = Server::always(OK);
    let mut settings = settings(&format!("http://127.0.0.1:{}", server.port));
    settings.max_idle = 2;
    let upstream = Upstream::new(settings).unwrap();
    let sends = (0..6).map(|_| send(&upstream));
    assert!(
        futures::future::join_all(sends)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert!(upstream.idle_connections() <= 2);
}
