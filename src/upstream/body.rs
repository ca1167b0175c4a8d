//! An answer's body that is passed on while it arrives, and says how it ended.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep};

use super::{Connected, StreamEnd};

/// Why a streamed answer broke off. The message is safe for logs.
#[derive(Debug, Clone, Error)]
#[error("the answer broke off: {0}")]
pub struct StreamError(Cow<'static, str>);

type OnEnd = Box<dyn FnOnce(StreamEnd) + Send>;

/// The body of a streamed answer. It drives its connection only while it is polled, so a slow reader slows the
/// API down and nothing piles up in between.
#[must_use = "a stream that is dropped closes its connection"]
pub struct StreamingBody {
    /// Gone once the end is known: back in the pool, or closed.
    source: Option<(Incoming, Connected)>,
    on_end: Option<OnEnd>,
    bytes_left: u64,
    idle_timeout: Duration,
    /// Made when first waited for; runs only between two frames.
    silence: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl StreamingBody {
    pub(super) fn new(
        body: Incoming,
        connected: Connected,
        idle_timeout: Duration,
        max_bytes: u64,
        on_end: OnEnd,
    ) -> Self {
        let mut stream = Self {
            source: Some((body, connected)),
            on_end: Some(on_end),
            bytes_left: max_bytes,
            idle_timeout,
            silence: None,
            waiting: false,
        };
        stream.finish_if_whole();
        stream
    }

    /// Readers may stop polling once `is_end_stream` holds, so the end is told before the last frame is handed out.
    fn finish_if_whole(&mut self) {
        if self
            .source
            .as_ref()
            .is_some_and(|(body, _)| body.is_end_stream())
        {
            self.finish(StreamEnd::Complete);
        }
    }

    fn finish(&mut self, end: StreamEnd) {
        if let Some((body, connected)) = self.source.take() {
            drop(body);
            if matches!(end, StreamEnd::Complete) {
                connected.give_back();
            }
        }
        if let Some(on_end) = self.on_end.take() {
            on_end(end);
        }
    }

    fn break_off(&mut self, reason: Cow<'static, str>) -> Poll<Option<FrameResult>> {
        self.finish(StreamEnd::Truncated(reason.clone()));
        Poll::Ready(Some(Err(StreamError(reason))))
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle_timeout = self.idle_timeout;
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(sleep(idle_timeout)));
        if !self.waiting {
            self.waiting = true;
            let now = Instant::now();
            // A timeout beyond what the clock can hold is no timeout.
            let until = now.checked_add(idle_timeout);
            silence
                .as_mut()
                .reset(until.unwrap_or(now + Duration::from_secs(86_400 * 365)));
        }
        silence.as_mut().poll(cx)
    }
}

type FrameResult = Result<Frame<Bytes>, StreamError>;

impl Body for StreamingBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        let this = self.get_mut();
        let Some((body, connected)) = &mut this.source else {
            return Poll::Ready(None);
        };
        match connected.live.poll_frame(body, cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting = false;
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(bytes_left) = this.bytes_left.checked_sub(length) else {
                    return this.break_off("it is larger than allowed".into());
                };
                this.bytes_left = bytes_left;
                this.finish_if_whole();
                if frame.is_data() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                // Trailers are not passed on, and nothing follows them.
                this.finish(StreamEnd::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(None) => {
                this.finish(StreamEnd::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => this.break_off(error.to_string().into()),
            Poll::Pending if connected.live.has_ended() => {
                this.break_off("the connection ended".into())
            }
            Poll::Pending => match this.poll_silence(cx) {
                Poll::Ready(()) => this.break_off("the API fell silent".into()),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Some((body, _)) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        self.finish(StreamEnd::DroppedByReader);
    }
}

impl std::fmt::Debug for StreamingBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamingBody")
            .field("ended", &self.source.is_none())
            .finish_non_exhaustive()
    }
}
