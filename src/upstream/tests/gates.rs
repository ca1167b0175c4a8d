//! The promise itself: bytes leave while the gate lets them, and at no other time.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use parking_lot::RwLock;

use super::{
    server::{OK, Server, pause},
    *,
};

/// A kill switch as the gateway has one: halting waits for those inside and shuts the others out.
#[derive(Default)]
struct Switch {
    halted: RwLock<bool>,
    granted: AtomicUsize,
}

impl Switch {
    fn halt(&self) {
        *self.halted.write() = true;
    }

    fn granted(&self) -> usize {
        self.granted.load(Ordering::SeqCst)
    }
}

impl Gate for Switch {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        let halted = self.halted.read();
        if *halted {
            return Err(Halted);
        }
        self.granted.fetch_add(1, Ordering::SeqCst);
        Ok(send())
    }
}

/// Runs something of the test's own right before and right after the moment of sending.
struct Around<B, A> {
    before: B,
    after: A,
}

impl<B: Fn() + Sync, A: Fn() + Sync> Gate for Around<B, A> {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        (self.before)();
        let result = send();
        (self.after)();
        Ok(result)
    }
}

#[tokio::test]
async fn a_refused_request_leaves_no_byte() {
    let server = Server::always(OK);
    let upstream = upstream(server.port);
    let switch = Switch::default();
    switch.halt();
    let fresh = upstream.send(post("{}"), LIMITS, &switch).await;
    assert!(matches!(fresh, Err(SendError::Halted)));
    // The connection was opened and nothing said on it, so it serves the next request.
    send(&upstream).await.unwrap();
    let reused = upstream.send(post("{}"), LIMITS, &switch).await;
    assert!(matches!(reused, Err(SendError::Halted)));
    settle_down().await;
    assert_eq!((server.connections(), server.begun()), (1, 1));
}

#[tokio::test]
async fn the_whole_request_is_out_before_the_gate_is_let_go() {
    let server = Server::always(OK);
    let upstream = upstream(server.port);
    for round in 1..=3 {
        let gate = Around {
            before: || assert_eq!(server.begun(), round - 1),
            // The runtime's only thread stands here: what arrives now was written by `send` itself.
            after: || {
                let patience = Instant::now() + Duration::from_secs(5);
                while server.requests() < round && Instant::now() < patience {
                    pause(1);
                }
                assert_eq!(server.requests(), round);
            },
        };
        upstream
            .send(post("x".repeat(10_000)), LIMITS, &gate)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_spent_task_budget_does_not_delay_the_sending() {
    fn spend() {
        let mut cx = Context::from_waker(Waker::noop());
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..1000 {
            sender.send(()).unwrap();
        }
        while pin!(receiver.recv()).poll(&mut cx).is_ready() {}
    }
    let server = Server::always(OK);
    let upstream = upstream(server.port);
    send(&upstream).await.unwrap();
    let gate = Around {
        before: spend,
        after: || (),
    };
    let mut sending = Box::pin(upstream.send(post("{}"), LIMITS, &gate));
    poll_fn(|cx| {
        assert!(sending.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    let patience = Instant::now() + Duration::from_secs(5);
    while server.requests() < 2 && Instant::now() < patience {
        pause(1);
    }
    assert_eq!(server.requests(), 2);
    assert_eq!(sending.await.unwrap().body, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_handed_back_unsent_is_retried_once_past_the_gate() {
    let (close, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = Server::start(move |mut client| {
        client.request();
        client.say(OK);
        if client.index == 0 {
            wait.lock().unwrap().recv().unwrap();
        } else {
            client.hold();
        }
    });
    let upstream = upstream(server.port);
    send(&upstream).await.unwrap();
    let passes = AtomicUsize::new(0);
    let gate = Around {
        // The connection was found good, and ends just before the request is written. The runtime's other threads
        // notice that meanwhile.
        before: || {
            if passes.fetch_add(1, Ordering::SeqCst) == 0 {
                close.send(()).unwrap();
                pause(200);
            }
        },
        after: || (),
    };
    upstream.send(post("{}"), LIMITS, &gate).await.unwrap();
    assert_eq!(passes.load(Ordering::SeqCst), 2);
    assert_eq!((server.connections(), server.begun()), (2, 2));
}

#[tokio::test]
async fn a_large_request_passes_the_gate_for_every_part() {
    let server = Server::always(OK);
    let switch = Switch::default();
    let upstream = upstream(server.port);
    upstream
        .send(post(vec![b'x'; 20_000_000]), LIMITS, &switch)
        .await
        .unwrap();
    assert_eq!(server.requests(), 1);
    assert!(switch.granted() > 1);
    assert_eq!(upstream.idle_connections(), 1);
}

#[tokio::test]
async fn a_halt_cuts_off_a_request_that_is_half_written() {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = Server::start(move |mut client| {
        wait.lock().unwrap().recv().unwrap();
        client.request();
    });
    let switch = Arc::new(Switch::default());
    let upstream = upstream(server.port);
    let sending = tokio::spawn({
        let (switch, upstream) = (Arc::clone(&switch), upstream.clone());
        async move {
            upstream
                .send(post(vec![b'x'; 50_000_000]), LIMITS, &*switch)
                .await
        }
    });
    // Halted before its first bytes it would not be half written: a busy machine may need its time until then.
    while switch.granted() == 0 {
        settle_down().await;
    }
    switch.halt();
    let granted = switch.granted();
    go_on.send(()).unwrap();
    let error = sending.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, SendError::Lost { reason, .. } if reason.contains("halted")),
        "{error:?}"
    );
    settle_down().await;
    assert_eq!((server.begun(), server.requests()), (1, 0));
    assert_eq!(switch.granted(), granted);
}

/// An API may answer before it has read the request; then the rest of it is never sent, halted or not.
#[tokio::test]
async fn reading_a_stream_sends_nothing() {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = Server::start(move |mut client| {
        client.await_first_byte();
        client.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        wait.lock().unwrap().recv().unwrap();
        client.request();
    });
    let switch = Switch::default();
    let upstream = upstream(server.port);
    let limits = StreamLimits {
        idle_timeout: Duration::from_millis(500),
        ..STREAM_LIMITS
    };
    let request = post(vec![b'x'; 50_000_000]);
    let sent = upstream
        .send_streaming(request, limits, &switch, |_| ())
        .await;
    let Ok(mut answer) = sent else {
        panic!("{:?}", sent.err());
    };
    let granted = switch.granted();
    switch.halt();
    go_on.send(()).unwrap();
    assert!(answer.body.frame().await.unwrap().is_err());
    settle_down().await;
    assert_eq!((server.begun(), server.requests()), (1, 0));
    assert_eq!(switch.granted(), granted);
}

#[tokio::test]
async fn an_ended_connection_is_noticed_before_the_gate_is_asked() {
    let server = Server::start(|mut client| {
        client.request();
        client.say(OK);
        // The connection is back in the pool when it ends.
        pause(20);
    });
    let upstream = upstream(server.port);
    let switch = Switch::default();
    for asked in 1..=3 {
        upstream.send(post("{}"), LIMITS, &switch).await.unwrap();
        assert_eq!(switch.granted(), asked);
        settle_down().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_sent_after_the_halt_was_acknowledged() {
    for _ in 0..5 {
        let server = Server::always(OK);
        let upstream = upstream(server.port);
        let switch = Arc::new(Switch::default());
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let (upstream, switch) = (upstream.clone(), Arc::clone(&switch));
                tokio::spawn(async move {
                    loop {
                        match upstream.send(post("{}"), LIMITS, &*switch).await {
                            Ok(_) => {}
                            Err(SendError::Halted) => return,
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        switch.halt();
        let granted = switch.granted();
        for task in tasks {
            task.await.unwrap();
        }
        settle_down().await;
        assert!(granted > 100, "too few to mean anything: {granted}");
        assert_eq!(switch.granted(), granted);
        assert_eq!(server.begun(), granted);
    }
}
