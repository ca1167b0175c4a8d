//! Bodies that are passed on while they arrive, and the one report of how they ended.

use std::{sync::mpsc, time::Duration};

use http_body_util::BodyExt;
use hyper::body::Body;

use super::{
    super::{StreamEnd, StreamingBody},
    server::{OK, Server},
    *,
};

type Ends = mpsc::Receiver<StreamEnd>;

async fn stream(
    upstream: &Upstream,
    limits: StreamLimits,
) -> Result<(Answer<StreamingBody>, Ends), SendError> {
    let (tell, ends) = mpsc::channel();
    let on_end = move |end| tell.send(end).unwrap();
    let answer = upstream
        .send_streaming(post("{}"), limits, &Open, on_end)
        .await?;
    Ok((answer, ends))
}

async fn next(body: &mut StreamingBody) -> Option<String> {
    let data = body.frame().await?.unwrap().into_data().unwrap();
    Some(String::from_utf8(data.to_vec()).unwrap())
}

#[tokio::test]
async fn frames_are_seen_as_they_come_and_the_connection_is_used_again() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = Server::start(move |mut client| {
        while client.request().is_some() {
            client.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
            wait.lock().unwrap().recv().unwrap();
            client.say("3\r\ntwo\r\n0\r\n\r\n");
        }
    });
    let upstream = upstream(server.port);
    for _ in 0..2 {
        let (mut answer, ends) = stream(&upstream, STREAM_LIMITS).await.unwrap();
        assert_eq!(next(&mut answer.body).await.as_deref(), Some("one"));
        assert!(ends.try_recv().is_err());
        go_on.send(()).unwrap();
        assert_eq!(next(&mut answer.body).await.as_deref(), Some("two"));
        assert_eq!(next(&mut answer.body).await, None);
        drop(answer);
        assert_eq!(ends.iter().collect::<Vec<_>>(), [StreamEnd::Complete]);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_body_of_stated_length_is_complete_with_its_last_byte() {
    let server = Server::always(OK);
    let upstream = upstream(server.port);
    let (mut answer, ends) = stream(&upstream, STREAM_LIMITS).await.unwrap();
    assert_eq!(answer.body.size_hint().exact(), Some(2));
    assert_eq!(next(&mut answer.body).await.as_deref(), Some("ok"));
    assert!(answer.body.is_end_stream());
    assert_eq!(ends.try_recv(), Ok(StreamEnd::Complete));
    assert_eq!(upstream.idle_connections(), 1);
}

#[tokio::test]
async fn an_empty_body_is_complete_at_once() {
    let server = Server::always("HTTP/1.1 204 No Content\r\n\r\n");
    let upstream = upstream(server.port);
    let (answer, ends) = stream(&upstream, STREAM_LIMITS).await.unwrap();
    assert!(answer.body.is_end_stream());
    assert_eq!(ends.try_recv(), Ok(StreamEnd::Complete));
    assert_eq!(upstream.idle_connections(), 1);
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
    ] {
        let server = Server::once(bytes);
        let upstream = upstream(server.port);
        let (mut answer, ends) = stream(&upstream, STREAM_LIMITS).await.unwrap();
        assert_eq!(next(&mut answer.body).await.as_deref(), Some("ok"));
        assert!(answer.body.frame().await.unwrap().is_err());
        assert!(answer.body.frame().await.is_none());
        drop(answer);
        let ends: Vec<_> = ends.iter().collect();
        assert!(
            matches!(ends.as_slice(), [StreamEnd::Truncated(_)]),
            "{ends:?}"
        );
    }
}

#[tokio::test]
async fn a_reader_that_leaves_is_reported_and_closes_the_connection() {
    let (closed, is_closed) = mpsc::channel();
    let server = Server::start(move |mut client| {
        client.request();
        client.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
        client.hold();
        closed.send(()).unwrap();
    });
    let upstream = upstream(server.port);
    let (mut answer, ends) = stream(&upstream, STREAM_LIMITS).await.unwrap();
    next(&mut answer.body).await;
    drop(answer);
    assert_eq!(
        ends.iter().collect::<Vec<_>>(),
        [StreamEnd::DroppedByReader]
    );
    is_closed.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(upstream.idle_connections(), 0);
}

#[tokio::test]
async fn streams_that_are_too_large_or_too_silent_break_off() {
    let server = Server::start(|mut client| {
        client.request();
        client.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        client.hold();
    });
    let upstream = upstream(server.port);
    let small = StreamLimits {
        max_bytes: 4,
        ..STREAM_LIMITS
    };
    let (mut answer, ends) = stream(&upstream, small).await.unwrap();
    assert!(answer.body.frame().await.unwrap().is_err());
    assert!(matches!(ends.recv(), Ok(StreamEnd::Truncated(why)) if why.contains("larger")));

    let hasty = StreamLimits {
        idle_timeout: Duration::from_millis(30),
        ..STREAM_LIMITS
    };
    let (mut answer, ends) = stream(&upstream, hasty).await.unwrap();
    assert_eq!(next(&mut answer.body).await.as_deref(), Some("hello"));
    assert!(answer.body.frame().await.unwrap().is_err());
    assert!(matches!(ends.recv(), Ok(StreamEnd::Truncated(why)) if why.contains("silent")));
}

#[tokio::test]
async fn a_stated_length_beyond_the_limit_is_refused_before_the_stream_begins() {
    let server = Server::once("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n");
    let error = stream(&upstream(server.port), STREAM_LIMITS).await.err();
    assert!(
        matches!(error, Some(SendError::AnswerTooLarge { .. })),
        "{error:?}"
    );
}
