//! A client's connection as the HTTP parser reads it, with a second pair of eyes on it.
//!
//! hyper repairs what it finds odd: of two lengths it silently keeps one, and it takes a bare LF for a line's end. Whoever
//! stands in front of us may have repaired the same bytes otherwise, and then the end of one request and the beginning of
//! the next are not where they thought (RFC 9112 section 11.2). So the same bytes are followed here, without being changed,
//! and what has more than one reading marks the connection: it is answered once more, with a refusal, and closed.

use std::{
    future::Future as _,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Set once something with two readings came in on a connection; never unset.
#[derive(Debug, Clone, Default)]
pub(super) struct Ambiguous(Arc<AtomicBool>);

impl Ambiguous {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The connection. Reading and writing go straight through.
pub(super) struct Watched<S> {
    stream: S,
    framing: Framing,
    ambiguous: Ambiguous,
    /// How long the client may take nothing of what is written.
    patience: Duration,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    /// `longest_line` is the length beyond which hyper has long given up.
    pub(super) fn new(
        stream: S,
        longest_line: usize,
        patience: Duration,
        ambiguous: Ambiguous,
    ) -> Self {
        Self {
            stream,
            framing: Framing::new(longest_line),
            ambiguous,
            patience,
            stalled: None,
        }
    }

    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled.as_mut().poll(cx).map(|()| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read its answer",
            ))
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let new = buffer.filled().get(before..).unwrap_or_default();
        if !this.ambiguous.is_set() && this.framing.follow(new).is_err() {
            this.ambiguous.set();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.timed(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, parts);
        this.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// These bytes have more than one reading.
#[derive(Debug, PartialEq, Eq)]
struct TwoReadings;

/// Where in a request the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    /// In a body of stated length, with this much to come.
    Body(u64),
    ChunkSize,
    /// In a chunk, with this much to come, its line end included.
    Chunk(u64),
    Trailers,
}

/// What the head has said so far.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    is_http_1_0: bool,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
}

/// Follows the requests of one connection.
#[derive(Debug)]
struct Framing {
    place: Place,
    head: Head,
    line: Vec<u8>,
    longest_line: usize,
}

impl Framing {
    fn new(longest_line: usize) -> Self {
        Self {
            place: Place::Head,
            head: Head::default(),
            line: Vec::new(),
            longest_line,
        }
    }

    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), TwoReadings> {
        while !bytes.is_empty() {
            bytes = match self.place {
                Place::Body(left) => {
                    let (left, rest) = skip(left, bytes);
                    self.place = if left == 0 {
                        Place::Head
                    } else {
                        Place::Body(left)
                    };
                    rest
                }
                Place::Chunk(left) => {
                    let (left, rest) = skip(left, bytes);
                    self.place = if left == 0 {
                        Place::ChunkSize
                    } else {
                        Place::Chunk(left)
                    };
                    rest
                }
                Place::Head | Place::ChunkSize | Place::Trailers => self.gather(bytes)?,
            };
        }
        Ok(())
    }

    /// Takes bytes up to the end of the line, and the line once it is whole.
    fn gather<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], TwoReadings> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        if self.line.len() + part.len() > self.longest_line {
            return Err(TwoReadings);
        }
        self.line.extend_from_slice(part);
        if end.is_some() {
            let mut line = std::mem::take(&mut self.line);
            let text = line.strip_suffix(b"\r\n").ok_or(TwoReadings)?;
            if text.contains(&b'\r') {
                return Err(TwoReadings);
            }
            self.whole_line(text)?;
            line.clear();
            self.line = line;
        }
        Ok(rest)
    }

    fn whole_line(&mut self, line: &[u8]) -> Result<(), TwoReadings> {
        match self.place {
            Place::Head => return self.head_line(line),
            Place::ChunkSize => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                self.place = match number(digits, 16)? {
                    0 => Place::Trailers,
                    size => Place::Chunk(size.checked_add(2).ok_or(TwoReadings)?),
                };
            }
            Place::Trailers if line.is_empty() => self.place = Place::Head,
            Place::Trailers | Place::Body(_) | Place::Chunk(_) => {}
        }
        Ok(())
    }

    fn head_line(&mut self, line: &[u8]) -> Result<(), TwoReadings> {
        let head = &mut self.head;
        if !head.begun {
            // An empty line before a request is to be skipped (RFC 9112 section 2.2).
            head.begun = !line.is_empty();
            head.is_http_1_0 = line.ends_with(b" HTTP/1.0");
            return Ok(());
        }
        if line.is_empty() {
            // Without exactly one Host, HTTP/1.1 is to be answered with 400 (RFC 9112 section 3.2).
            let host_is_clear = head.hosts == 1 || (head.hosts == 0 && head.is_http_1_0);
            if !host_is_clear || (head.chunked && (head.length.is_some() || head.is_http_1_0)) {
                return Err(TwoReadings);
            }
            self.place = match head.length {
                _ if head.chunked => Place::ChunkSize,
                None | Some(0) => Place::Head,
                Some(length) => Place::Body(length),
            };
            *head = Head::default();
            return Ok(());
        }
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(TwoReadings)?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        // White space around a name is a folded line, or a name that others read without it.
        if name.is_empty() || name.iter().any(|byte| byte.is_ascii_whitespace()) {
            return Err(TwoReadings);
        }
        if name.eq_ignore_ascii_case(b"host") {
            head.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = number(trim_spaces(value), 10)?;
            if head.length.replace(length).is_some() {
                return Err(TwoReadings);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let again = std::mem::replace(&mut head.chunked, true);
            if again || !trim_spaces(value).eq_ignore_ascii_case(b"chunked") {
                return Err(TwoReadings);
            }
        }
        Ok(())
    }
}

fn skip(left: u64, bytes: &[u8]) -> (u64, &[u8]) {
    let step = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (left - step as u64, bytes.get(step..).unwrap_or_default())
}

/// Spaces only: a tab is white space too, but one that not everybody skips.
fn trim_spaces(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(b" ") {
        text = rest;
    }
    while let Some(rest) = text.strip_suffix(b" ") {
        text = rest;
    }
    text
}

/// Digits and nothing else: no sign, no space, no list.
fn number(digits: &[u8], radix: u32) -> Result<u64, TwoReadings> {
    let text = std::str::from_utf8(digits).map_err(|_| TwoReadings)?;
    if !text.chars().all(|character| character.is_digit(radix)) {
        return Err(TwoReadings);
    }
    u64::from_str_radix(text, radix).map_err(|_| TwoReadings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(text: &str, at_a_time: usize) -> Result<Place, TwoReadings> {
        let mut framing = Framing::new(1_000);
        for part in text.as_bytes().chunks(at_a_time) {
            framing.follow(part)?;
        }
        Ok(framing.place)
    }

    #[test]
    fn plain_requests_are_followed_to_their_end_however_they_arrive() {
        let sized = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab\ncd";
        let chunked = "POST /a HTTP/1.1\r\nhost: x\r\nTRANSFER-ENCODING: Chunked\r\n\r\n\
                       5;ext=\"1\"\r\na\nb\r\n\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nX-Trailer: 1\r\n\r\n";
        let bare = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
        let old = "GET /a HTTP/1.0\r\n\r\n";
        for text in [
            [sized, chunked, bare].concat(),
            [bare, "\r\n", sized, sized, old].concat(),
            [chunked, chunked, bare].concat(),
        ] {
            for at_a_time in [1, 2, 7, 4_096] {
                assert_eq!(follow(&text, at_a_time), Ok(Place::Head), "{text}");
            }
        }
    }

    #[test]
    fn what_has_two_readings_is_seen_in_whichever_request_it_stands() {
        let first = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        for headers in [
            "Host: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Host: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n",
            "Host: x\r\nContent-Length: +3\r\n",
            "Host: x\r\nContent-Length: 0x3\r\n",
            "Host: x\r\nContent-Length: 3, 3\r\n",
            "Host: x\r\nContent-Length:\r\n",
            "Host: x\r\nContent-Length: 99999999999999999999\r\n",
            "Host: x\r\nTransfer-Encoding: xchunked\r\n",
            "Host: x\r\nTransfer-Encoding: identity\r\n",
            "Host: x\r\nTransfer-Encoding: chunked, chunked\r\n",
            "Host: x\r\nTransfer-Encoding:\tchunked\r\n",
            "Host: x\r\nTransfer-Encoding : chunked\r\n",
            "Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Host: x\r\nA: b\nC: d\r\n",
            "Host: x\r\nA: b\rC: d\r\n",
            "Host: x\r\nA: b\r\n folded\r\n",
            "Host: x\r\nno colon\r\n",
            "Host: x\r\nHost: y\r\n",
            "A: b\r\n",
        ] {
            let text = format!("{first}POST /a HTTP/1.1\r\n{headers}\r\n");
            assert_eq!(follow(&text, 3), Err(TwoReadings), "{headers:?}");
        }
        let chunked = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "3\nabc\r\n",
            " 3\r\n",
            "+3\r\n",
            "\r\n",
            "ffffffffffffffff\r\n",
        ] {
            let text = format!("{first}{chunked}{body}");
            assert_eq!(follow(&text, 3), Err(TwoReadings), "{body:?}");
        }
        let old = "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(follow(old, 3), Err(TwoReadings));
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(1_000));
        assert_eq!(follow(&long, 100), Err(TwoReadings));
    }
}
