//! Requests and answers of HTTP/1.1 as bytes.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The request under construction: a POST with a body.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether `content-length` is added.
    pub(crate) has_length: bool,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Returns a request that ends its connection.
    pub(crate) fn post(path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let line = format!("POST {path} HTTP/1.1");
        Self { line, headers: Vec::new(), body: body.into(), has_length: true }
            .with("host", "localhost")
            .with("content-type", content_type)
            .with("connection", "close")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    pub(crate) fn line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.line);
        self
    }

    pub(crate) fn without_length(mut self) -> Self {
        self.has_length = false;
        self
    }

    /// Returns the head without the empty line, and the body.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.has_length {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        [text.as_bytes(), b"\r\n", &self.body].concat()
    }
}

impl Answer {
    /// Returns the value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Reads one answer. `is_head` says that it has no body whatever its length says.
    pub(crate) fn read(stream: &mut impl Read, is_head: bool) -> Result<Self> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                let read = stream.read(&mut byte).context("no answer")?;
                anyhow::ensure!(read == 1, "closed after {:?}", head.escape_ascii().to_string());
                head.push(byte[0]);
            }
            let text = String::from_utf8(head)?;
            let mut lines = text.trim_end().lines();
            let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
            if status == 100 {
                continue;
            }
            let split =
                |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
            let headers: Vec<_> = lines.filter_map(split).collect();
            let mut answer = Self { status, headers, body: Vec::new() };
            let length = answer.header("content-length").map(str::parse).transpose()?;
            match length {
                Some(length) if !is_head => {
                    answer.body = vec![0; length];
                    stream.read_exact(&mut answer.body)?;
                }
                None if answer.header("connection") == Some("close") => drop(stream.read_to_end(&mut answer.body)),
                _ => {}
            }
            return Ok(answer);
        }
    }
}

/// Connects to a port.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends these bytes and returns the answer. `is_torn` says that the client then closes its side.
pub(crate) fn send(address: SocketAddr, bytes: &[u8], is_torn: bool) -> Result<Answer> {
    let mut stream = connect(address)?;
    // A server that refuses a request early may close the connection before all was sent.
    let written = stream.write_all(bytes);
    if is_torn {
        stream.shutdown(Shutdown::Write)?;
    }
    let is_head = bytes.starts_with(b"HEAD ");
    Answer::read(&mut stream, is_head).with_context(|| format!("written: {written:?}"))
}
