//! One request and its answer on one connection, driven by the task that wants it.
//!
//! hyper's connection is a future. It is polled here, by the caller's own task, and never spawned: so the
//! moment of sending is plain synchronous code that a gate can hold, and dropping the caller closes the socket.

use std::{
    borrow::Cow,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::{
        TrySendError,
        http1::{Connection, SendRequest},
    },
};
use tokio::{task::unconstrained, time::Sleep};

use super::{
    Gate, Halted, SendError,
    wire::{Meter, Wire},
};

/// A request on its way: its body is whole and in memory.
pub(super) type Outgoing = Request<Full<Bytes>>;

/// An open connection together with hyper's handle for sending on it.
pub(super) struct Live {
    sender: SendRequest<Full<Bytes>>,
    /// Gone once it has ended: a future that completed is not polled again.
    /// Boxed, because it is large and moves between pool and user.
    connection: Option<Box<Connection<Wire, Full<Bytes>>>>,
    meter: Arc<Meter>,
}

/// Why there is no answer.
pub(super) enum Failure {
    /// The gate refused; the connection is untouched.
    Halted,
    /// Nothing was sent. The request came back if hyper had not begun with it.
    Unsent {
        request: Option<Box<Outgoing>>,
        reason: Cow<'static, str>,
    },
    /// Something was sent, and this came of it.
    Sent(SendError),
}

impl Live {
    /// Drives a new connection until hyper accepts a request on it.
    pub(super) async fn when_ready(
        sender: SendRequest<Full<Bytes>>,
        connection: Connection<Wire, Full<Bytes>>,
        meter: Arc<Meter>,
    ) -> Result<Self, String> {
        let mut live = Self {
            sender,
            connection: Some(Box::new(connection)),
            meter,
        };
        poll_fn(|cx| {
            live.drive(cx);
            live.sender.poll_ready(cx)
        })
        .await
        .map_err(|error| format!("the connection ended before it was used: {error}"))?;
        Ok(live)
    }

    /// Whether nothing is going on here and a request could be sent. Looks at the socket once: an end, or bytes
    /// that nobody asked for, make the connection unfit.
    pub(super) fn is_idle(&mut self) -> bool {
        // No waker: nobody is to be woken for an idle connection, least of all the task that used it last.
        self.drive_unconstrained(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.meter.flushed() && self.sender.is_ready()
    }

    /// Lets hyper read, and write if the wire is open.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection.as_mut()).poll(cx).is_ready()
        {
            // What went wrong reaches the caller through the response or its body.
            self.connection = None;
        }
    }

    /// As `drive`, but not subject to tokio's budget: with the budget spent, hyper's queue and the socket answer
    /// `Pending` although there is work, and a request would stay behind to be written at some later poll.
    fn drive_unconstrained(&mut self, cx: &mut Context<'_>) {
        let mut driven = pin!(unconstrained(poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(())
        })));
        let _ = driven.as_mut().poll(cx);
    }

    /// Drives, and lets what is left of a large request out only past the gate.
    fn drive_past(&mut self, cx: &mut Context<'_>, gate: &impl Gate) -> Result<(), Halted> {
        if self.meter.flushed() {
            self.drive(cx);
            return Ok(());
        }
        let meter = Arc::clone(&self.meter);
        gate.with_permission(|| meter.while_open(|| self.drive(cx)))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.connection.is_none()
    }

    /// The next frame of an answer's body, with the connection driven as needed. Writes nothing.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Poll::Ready(frame) = poll_quietly(body) {
            return Poll::Ready(frame);
        }
        self.drive(cx);
        poll_quietly(body)
    }

    fn poll_frame_past(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
        gate: &impl Gate,
    ) -> Poll<Result<Option<Frame<Bytes>>, SendError>> {
        if let Poll::Ready(frame) = poll_quietly(body) {
            return Poll::Ready(frame.transpose().map_err(truncated));
        }
        if self.drive_past(cx, gate).is_err() {
            return Poll::Ready(Err(halted_midway()));
        }
        let frame = ready!(poll_quietly(body));
        Poll::Ready(frame.transpose().map_err(truncated))
    }
}

/// Sends a request past the gate and waits for the answer's head.
///
/// The first poll is the moment of sending. With the gate held, hyper takes the request and writes head and body
/// to the socket; nothing is awaited in between. Where not one byte was taken by then, the connection is closed
/// and the request certainly unsent.
pub(super) async fn exchange(
    live: &mut Live,
    request: Outgoing,
    gate: &impl Gate,
    mut deadline: Pin<&mut Sleep>,
) -> Result<Response<Incoming>, Failure> {
    let mut request = Some(request);
    let mut response = pin!(None);
    live.meter.begin();
    poll_fn(|cx| {
        if let Some(request) = request.take() {
            let meter = Arc::clone(&live.meter);
            let permitted = gate.with_permission(|| {
                meter.while_open(|| {
                    response.set(Some(live.sender.try_send_request(request)));
                    live.drive_unconstrained(cx);
                });
            });
            if permitted.is_err() {
                return Poll::Ready(Err(Failure::Halted));
            }
            if !live.meter.touched() {
                live.connection = None;
            }
        } else if live.drive_past(cx, gate).is_err() {
            return Poll::Ready(Err(Failure::Sent(halted_midway())));
        }
        let answered = match response.as_mut().as_pin_mut() {
            Some(response) => poll_response(response),
            None => Poll::Pending,
        };
        if let Poll::Ready(answered) = answered {
            return Poll::Ready(answered.map_err(|error| classify(error, &live.meter)));
        }
        if live.has_ended() {
            return Poll::Ready(Err(Failure::Sent(lost("the connection ended unanswered"))));
        }
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Failure::Sent(timed_out())));
        }
        Poll::Pending
    })
    .await
}

/// Reads a whole body of at most `limit` bytes, or nothing. `Ok(None)` says that there was more.
pub(super) async fn collect(
    live: &mut Live,
    mut body: Incoming,
    limit: usize,
    gate: &impl Gate,
    mut deadline: Pin<&mut Sleep>,
) -> Result<Option<Bytes>, SendError> {
    let mut parts = Parts::default();
    loop {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = live.poll_frame_past(&mut body, cx, gate) {
                return Poll::Ready(frame);
            }
            if live.has_ended() {
                return Poll::Ready(Err(lost("the connection ended within the answer")));
            }
            deadline.as_mut().poll(cx).map(|()| Err(timed_out()))
        })
        .await?;
        let Some(frame) = frame else {
            return Ok(Some(parts.into_bytes()));
        };
        if let Ok(data) = frame.into_data() {
            if data.len() > limit.saturating_sub(parts.length) {
                return Ok(None);
            }
            parts.push(data);
        }
    }
}

/// A body as it came. Most fit into one part and are then never copied.
#[derive(Default)]
struct Parts {
    first: Bytes,
    rest: Vec<u8>,
    length: usize,
}

impl Parts {
    fn push(&mut self, data: Bytes) {
        self.length += data.len();
        if self.first.is_empty() {
            self.first = data;
        } else {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&self.first);
            }
            self.rest.extend_from_slice(&data);
        }
    }

    fn into_bytes(self) -> Bytes {
        if self.rest.is_empty() {
            self.first
        } else {
            self.rest.into()
        }
    }
}

// Both futures below make progress only while this same task drives the connection, so there is nothing to be
// woken for. Without a waker they must not meet tokio's budget either: it would wake "later", that is never.

fn poll_response<F: Future>(response: Pin<&mut F>) -> Poll<F::Output> {
    pin!(unconstrained(response)).poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_quietly(body: &mut Incoming) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn classify(mut error: TrySendError<Outgoing>, meter: &Meter) -> Failure {
    let request = error.take_message().map(Box::new);
    let error = error.into_error();
    // Handed back or not one byte taken: both are proof.
    if request.is_some() || !meter.touched() {
        let reason = format!("the connection ended before the request was written: {error}");
        return Failure::Unsent {
            request,
            reason: reason.into(),
        };
    }
    Failure::Sent(if error.is_parse() {
        SendError::AnswerInvalid {
            status: None,
            reason: format!("the answer is not valid HTTP/1.1: {error}").into(),
        }
    } else {
        SendError::Lost {
            reason: error.to_string().into(),
            timeout: false,
        }
    })
}

fn truncated(error: hyper::Error) -> SendError {
    SendError::Lost {
        reason: format!("the answer broke off: {error}").into(),
        timeout: false,
    }
}

fn halted_midway() -> SendError {
    lost("halted while the request was being written")
}

fn lost(reason: &'static str) -> SendError {
    SendError::Lost {
        reason: reason.into(),
        timeout: false,
    }
}

fn timed_out() -> SendError {
    SendError::Lost {
        reason: "no whole answer within the time limit".into(),
        timeout: true,
    }
}
