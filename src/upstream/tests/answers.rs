//! What an API may answer, and what is refused.

use std::time::Duration;

use super::{
    server::{OK, Server},
    *,
};

async fn answer_to(bytes: &'static str) -> Result<Answer<Bytes>, SendError> {
    let server = Server::once(bytes);
    send(&upstream(server.port)).await
}

#[tokio::test]
async fn chunked_answers_are_put_together() {
    let answer = answer_to(
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n\
         3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-t: 1\r\n\r\n",
    )
    .await
    .unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.body),
        (201, "abcdefg".into())
    );
    assert!(answer.headers.is_empty(), "{:?}", answer.headers);
}

#[tokio::test]
async fn a_chunked_connection_is_used_again() {
    let server =
        Server::always("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let upstream = upstream(server.port);
    for _ in 0..3 {
        assert_eq!(send(&upstream).await.unwrap().body, "ok");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn informational_answers_are_skipped() {
    let answer = answer_to(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await
    .unwrap();
    assert_eq!((answer.status.as_u16(), answer.body), (200, "ok".into()));
}

#[tokio::test]
async fn answers_without_a_length_end_with_the_connection() {
    assert_eq!(
        answer_to("HTTP/1.0 200 OK\r\n\r\nwhole")
            .await
            .unwrap()
            .body,
        "whole"
    );
}

#[tokio::test]
async fn redirects_are_answers_like_any_other() {
    let answer =
        answer_to("HTTP/1.1 302 Found\r\nLocation: http://x.invalid/\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
    assert_eq!(answer.status.as_u16(), 302);
    assert_eq!(answer.headers["location"], "http://x.invalid/");
}

#[tokio::test]
async fn headers_that_are_not_the_agents_are_stripped() {
    let answer = answer_to(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, X-Named\r\nX-Named: 1\r\n\
         Keep-Alive: 5\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nToolgate-Call: forged\r\n\
         Alt-Svc: h3=x\r\nUpgrade: h2c\r\nProxy-Authenticate: x\r\nContent-Type: text/plain\r\n\r\nok",
    )
    .await
    .unwrap();
    let names: Vec<_> = answer
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    assert_eq!(names, ["content-type"]);
}

#[tokio::test]
async fn bodies_that_break_off_are_lost() {
    for bytes in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
    ] {
        let error = answer_to(bytes).await.unwrap_err();
        assert!(
            matches!(error, SendError::Lost { timeout: false, .. }),
            "{bytes:?}: {error:?}"
        );
        assert!(!error.certainly_not_sent());
    }
}

#[tokio::test]
async fn answers_that_cannot_be_passed_on_are_invalid() {
    for bytes in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Encoding: identity, br\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let error = answer_to(bytes).await.unwrap_err();
        assert!(
            matches!(error, SendError::AnswerInvalid { .. }),
            "{bytes:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn heads_beyond_the_limit_are_refused() {
    let server = Server::start(|mut client| {
        client.request();
        client.say("HTTP/1.1 200 OK\r\nX-Long: ");
        client.say(&"x".repeat(200_000));
        client.say("\r\nContent-Length: 0\r\n\r\n");
    });
    let error = send(&upstream(server.port)).await.unwrap_err();
    assert!(!error.certainly_not_sent(), "{error:?}");
}

#[tokio::test]
async fn a_stated_length_beyond_the_limit_is_refused_unread() {
    let server = Server::start(|mut client| {
        client.request();
        client.say("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n");
        client.hold();
    });
    let upstream = upstream(server.port);
    let error = send(&upstream).await.unwrap_err();
    assert!(
        matches!(error, SendError::AnswerTooLarge { status } if status == 200),
        "{error:?}"
    );
    assert_eq!(upstream.idle_connections(), 0);
}

#[tokio::test]
async fn a_body_that_grows_beyond_the_limit_is_refused() {
    let server = Server::start(|mut client| {
        client.request();
        client.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..3 {
            client.say(&format!("190\r\n{}\r\n", "x".repeat(400)));
        }
        client.hold();
    });
    let error = send(&upstream(server.port)).await.unwrap_err();
    assert!(
        matches!(error, SendError::AnswerTooLarge { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn silence_is_lost_by_timeout() {
    for begin in ["", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"] {
        let server = Server::start(move |mut client| {
            client.request();
            client.say(begin);
            client.hold();
        });
        let limits = SendLimits {
            timeout: Duration::from_millis(50),
            ..LIMITS
        };
        let upstream = upstream(server.port);
        let error = upstream.send(post("{}"), limits, &Open).await.unwrap_err();
        assert!(
            matches!(error, SendError::Lost { timeout: true, .. }),
            "{error:?}"
        );
        assert_eq!(upstream.idle_connections(), 0);
    }
}

#[tokio::test]
async fn head_requests_have_no_body_whatever_the_length_says() {
    let server = Server::always("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
    let upstream = upstream(server.port);
    for _ in 0..2 {
        let request = Request::head("/x").body(Full::default()).unwrap();
        let answer = upstream.send(request, LIMITS, &Open).await.unwrap();
        assert_eq!(answer.body, "");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn connect_is_refused_unsent() {
    let server = Server::always(OK);
    let request = Request::connect("/x").body(Full::default()).unwrap();
    let error = upstream(server.port)
        .send(request, LIMITS, &Open)
        .await
        .unwrap_err();
    assert!(error.certainly_not_sent());
    assert_eq!(server.connections(), 0);
}
