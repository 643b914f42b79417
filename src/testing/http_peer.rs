//! An HTTP/1.1 server on loopback whose every byte the test decides.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{Tasks, listen, patient};

/// An answer that accepts everything.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A server.
pub(crate) struct HttpPeer {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
}

/// A connection to the server.
pub(crate) struct HttpConnection(BufReader<TcpStream>);

/// A request with its body.
#[derive(Debug, Default)]
pub(crate) struct HttpRequest {
    pub(crate) line: String,
    /// With names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl HttpPeer {
    pub(crate) async fn start() -> Self {
        let listener = listen().await;
        Self { address: listener.local_addr().unwrap(), listener }
    }

    pub(crate) async fn accept(&self) -> HttpConnection {
        let (stream, _) = patient(self.listener.accept()).await.unwrap();
        HttpConnection(BufReader::new(stream))
    }

    /// Answers each request with the bytes that `answer` returns for it; without bytes the request gets no answer. An answer
    /// that ends with `!` closes the connection.
    pub(crate) fn serve(self, tasks: &Tasks, answer: impl Fn(&HttpRequest) -> Option<String> + Clone + Send + 'static) {
        let of_connections = tasks.clone();
        drop(tasks.spawn(async move {
            loop {
                let mut connection = self.accept_for_ever().await;
                let answer = answer.clone();
                drop(of_connections.spawn(async move {
                    while let Some(request) = connection.next().await {
                        let Some(text) = answer(&request) else { continue };
                        connection.send(text.trim_end_matches('!')).await;
                        if text.ends_with('!') {
                            return;
                        }
                    }
                }));
            }
        }));
    }

    pub(crate) async fn accept_for_ever(&self) -> HttpConnection {
        HttpConnection(BufReader::new(self.listener.accept().await.unwrap().0))
    }
}

impl HttpConnection {
    /// The next request.
    pub(crate) async fn request(&mut self) -> HttpRequest {
        patient(self.next()).await.expect("a request")
    }

    /// The next request with its body; `None` when the connection ends.
    pub(crate) async fn next(&mut self) -> Option<HttpRequest> {
        let mut request = self.head().await?;
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        request.body.resize(length, 0);
        self.0.read_exact(&mut request.body).await.ok()?;
        Some(request)
    }

    /// The next request without its body; `None` when the connection ends.
    pub(crate) async fn head(&mut self) -> Option<HttpRequest> {
        let mut request = HttpRequest { line: self.line().await?, ..HttpRequest::default() };
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { return Some(request) };
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Sends bytes. A client that gave up meanwhile is what some tests are about.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.0.get_mut().write_all(bytes.as_ref()).await);
    }

    /// Reads this many bytes.
    pub(crate) async fn skip(&mut self, len: usize) {
        patient(self.0.read_exact(&mut vec![0; len])).await.unwrap();
    }

    /// Waits until the client has closed the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        matches!(patient(self.0.read_u8()).await, Err(_closed))
    }
}

impl HttpRequest {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_probe(&self) -> bool {
        self.line.starts_with("HEAD ")
    }
}
