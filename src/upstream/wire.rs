//! The socket under hyper, with a shutter in front of its writing side.
//!
//! Two questions must have certain answers: "can a byte of a request leave now?" and "did one leave?".
//! hyper owns the socket and answers neither, so the socket is wrapped: bytes pass only while the shutter
//! is open, and a meter shared with the exchange says what has passed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// What has passed through a connection's writing side. Shared by the wire inside hyper and the exchange
/// outside; both live in one task, so the atomics only satisfy `Send` and need no ordering.
#[derive(Debug, Default)]
pub(super) struct Meter {
    open: AtomicBool,
    touched: AtomicBool,
    unflushed: AtomicBool,
}

impl Meter {
    /// Forgets the exchange before: nothing of the next request has been written.
    pub(super) fn begin(&self) {
        self.touched.store(false, Ordering::Relaxed);
        self.unflushed.store(false, Ordering::Relaxed);
    }

    /// Lets bytes out for as long as `send` runs, and not a moment longer.
    pub(super) fn while_open<R>(&self, send: impl FnOnce() -> R) -> R {
        self.open.store(true, Ordering::Relaxed);
        let result = send();
        self.open.store(false, Ordering::Relaxed);
        result
    }

    /// Whether a byte of the request may have reached the socket. Errs towards yes.
    pub(super) fn touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    /// Whether everything hyper wanted to write is in the kernel's hands.
    pub(super) fn flushed(&self) -> bool {
        !self.unflushed.load(Ordering::Relaxed)
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>, failure_may_have_sent: bool) {
        let touched = match written {
            Poll::Pending | Poll::Ready(Ok(0)) => false,
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(_)) => failure_may_have_sent,
        };
        if touched {
            self.touched.store(true, Ordering::Relaxed);
            self.unflushed.store(true, Ordering::Relaxed);
        }
    }

    fn note_flush(&self, flushed: &Poll<io::Result<()>>) {
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unflushed.store(false, Ordering::Relaxed);
        }
    }
}

enum Socket {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

/// A TCP or TLS stream that writes only while its [`Meter`] is open.
pub(super) struct Wire {
    socket: Socket,
    meter: Arc<Meter>,
}

impl Wire {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self {
            socket: Socket::Plain(TokioIo::new(stream)),
            meter: Arc::default(),
        }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self {
            socket: Socket::Tls(Box::new(TokioIo::new(stream))),
            meter: Arc::default(),
        }
    }

    pub(super) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// A failed write on a TCP stream wrote nothing; TLS may have sent one record before the next failed.
    fn failure_may_have_sent(&self) -> bool {
        matches!(self.socket, Socket::Tls(_))
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Socket::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        }
    }
}

// INVARIANT: while the meter is closed no byte that hyper wants to write reaches the socket. The shut side
// answers `Pending` and wakes nobody: whoever opens it polls the connection anyway.
impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.meter.is_open() {
            return Poll::Pending;
        }
        let written = match &mut self.socket {
            Socket::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Socket::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        };
        self.meter
            .note_write(&written, self.failure_may_have_sent());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.meter.is_open() {
            return Poll::Pending;
        }
        let written = match &mut self.socket {
            Socket::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Socket::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
        };
        self.meter
            .note_write(&written, self.failure_may_have_sent());
        written
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(io) => io.is_write_vectored(),
            Socket::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may hold encrypted bytes of a request back until here.
        if !self.meter.flushed() && !self.meter.is_open() {
            return Poll::Pending;
        }
        let flushed = match &mut self.socket {
            Socket::Plain(io) => Pin::new(io).poll_flush(cx),
            Socket::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        };
        self.meter.note_flush(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TLS goodbye would flush what is held back of a request; the drop that follows a failed
        // shutdown closes the socket just as well.
        if !self.meter.flushed() && !self.meter.is_open() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        match &mut self.socket {
            Socket::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Socket::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}
