//! Odd requests: the status that each gets, and whether its span is delivered. Where a Collector is installed, the same
//! requests are sent to it: it has to answer as the table says.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context, Result, ensure};

use super::{
    super::{
        fixture::{ExtraConfig, Fixture, encoded, span},
        harness::{self, Process, Ready},
    },
    bodies::{deflate, gzip, snappy_block, snappy_framed, zlib, zstd},
    wire::{self, Request},
};

const PROTOBUF: &str = "application/x-protobuf";
pub(super) const TRACES: &str = "/v1/traces";

/// A request and its effect.
pub(super) struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether the client closes its side after it.
    is_torn: bool,
    expected: Effect,
    /// Where the Collector does something else.
    collector: Option<Effect>,
}

/// The status of the answer, and whether the request's span arrives at a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    status: u16,
    is_delivered: bool,
}

/// The table while it is made. Each row has a trace of its own.
pub(super) struct Table(pub(super) Vec<Row>);

pub(super) const fn effect(status: u16) -> Effect {
    Effect { status, is_delivered: false }
}

pub(super) const TAKEN: Effect = Effect { status: 200, is_delivered: true };

/// Accepted, and there was nothing to deliver.
pub(super) const EMPTY: Effect = effect(200);

/// The trace of a row.
pub(super) fn trace(row: usize) -> [u8; 16] {
    (0x0dd0_0000_0000_0000_0000_0000_0000_0000_u128 + row as u128 + 1).to_be_bytes()
}

// === impl Table ===

impl Table {
    /// Returns the body of the next row: one span.
    pub(super) fn body(&self) -> Vec<u8> {
        encoded(vec![span(&trace(self.0.len()), 0)])
    }

    fn post(&self) -> Request {
        Request::post(TRACES, PROTOBUF, self.body())
    }

    pub(super) fn row(&mut self, name: &'static str, request: &Request, expected: Effect) {
        self.raw(name, request.bytes(), false, expected);
    }

    fn raw(&mut self, name: &'static str, bytes: Vec<u8>, is_torn: bool, expected: Effect) {
        self.0.push(Row { name, bytes, is_torn, expected, collector: None });
    }

    /// Says what the Collector does with the last row.
    pub(super) fn collector(&mut self, effect: Effect) {
        self.0.last_mut().expect("a row").collector = Some(effect);
    }

    fn types(&mut self) {
        self.row("as it should be", &self.post(), TAKEN);
        for (name, value, expected) in [
            ("a parameter", "application/x-protobuf; charset=utf-8", TAKEN),
            ("another case", "Application/X-PROTOBUF", TAKEN),
            ("a parameter without a space", "application/x-protobuf;v=1", TAKEN),
            ("an empty parameter", "application/x-protobuf;", TAKEN),
            ("spaces around", "  application/x-protobuf  ", TAKEN),
            ("a quoted parameter", "application/x-protobuf; messageType=\"a;b\"", TAKEN),
            ("no name", "", effect(415)),
            ("text", "text/plain", effect(415)),
            ("bytes", "application/octet-stream", effect(415)),
            ("protobuf without x-", "application/protobuf", effect(415)),
            ("a longer name", "application/x-protobuf-2", effect(415)),
            ("a form", "application/x-www-form-urlencoded", effect(415)),
            ("gRPC", "application/grpc", effect(415)),
            ("two types", "text/plain, application/x-protobuf", effect(415)),
        ] {
            let request = self.post().without("content-type").with("content-type", value);
            self.row(name, &request, expected);
        }
        let request = self.post().without("content-type");
        self.row("no content type", &request, effect(415));
        let request = self.post().without("content-type").with("content-type", "application/x-protobuf; =x");
        self.row("a broken parameter", &request, TAKEN);
        self.collector(effect(415));
        let request = self.post().with("content-type", "text/plain");
        self.row("two headers", &request, TAKEN);
    }

    fn methods(&mut self) {
        for (name, method) in [
            ("GET", "GET"),
            ("PUT", "PUT"),
            ("DELETE", "DELETE"),
            ("PATCH", "PATCH"),
            ("HEAD", "HEAD"),
            ("OPTIONS", "OPTIONS"),
            ("TRACE", "TRACE"),
            ("a method in lower case", "post"),
            ("a method that nobody knows", "EXPORT"),
        ] {
            let request = self.post().line(&format!("{method} {TRACES} HTTP/1.1"));
            self.row(name, &request, effect(405));
        }
        let request = self.post().line(&format!("OPTIONS {TRACES} HTTP/1.1"));
        let request = request.with("origin", "https://a.test").with("access-control-request-method", "POST");
        self.row("a preflight without cors", &request, effect(405));
    }

    fn paths(&mut self) {
        for (name, path, expected) in [
            ("the root", "/", effect(404)),
            ("a shorter path", "/v1/trace", effect(404)),
            ("a slash at the end", "/v1/traces/", effect(404)),
            ("upper case", "/V1/TRACES", effect(404)),
            ("a query", "/v1/traces?a=b", TAKEN),
            ("an empty query", "/v1/traces?", TAKEN),
            ("an absolute URL", "http://localhost/v1/traces", TAKEN),
            ("metrics without a route", "/v1/metrics", effect(404)),
            ("profiles without a route", "/v1development/profiles", effect(404)),
            ("the path of gRPC", "/opentelemetry.proto.collector.trace.v1.TraceService/Export", effect(404)),
        ] {
            let request = self.post().line(&format!("POST {path} HTTP/1.1"));
            self.row(name, &request, expected);
        }
        for (name, path) in [("two slashes", "//v1/traces"), ("dots", "/v1/../v1/traces")] {
            let request = self.post().line(&format!("POST {path} HTTP/1.1"));
            self.row(name, &request, effect(404));
            self.collector(effect(307));
        }
        let request = self.post().line("POST /v1/tr%61ces HTTP/1.1");
        self.row("an escaped letter", &request, effect(404));
        self.collector(TAKEN);
    }

    fn lengths(&mut self) {
        let empty = Request::post(TRACES, PROTOBUF, "");
        self.row("an empty body", &empty, EMPTY);
        self.row("no length and no body", &empty.clone().without_length(), EMPTY);
        let request = self.post().line(&format!("POST {TRACES} HTTP/1.0"));
        self.row("HTTP/1.0", &request, TAKEN);
        for (name, lengths, expected) in [
            ("the length twice", ["LEN", "LEN"], TAKEN),
            ("two lengths", ["LEN", "7"], effect(400)),
            ("a length that is no number", ["many", ""], effect(400)),
            ("a negative length", ["-5", ""], effect(400)),
            ("a length with a sign", ["+LEN", ""], effect(400)),
            ("an endless length", ["99999999999999999999999", ""], effect(400)),
        ] {
            let mut request = self.post().without_length();
            let length = request.body.len().to_string();
            for value in lengths.iter().filter(|value| !value.is_empty()) {
                request = request.with("content-length", &value.replace("LEN", &length));
            }
            self.row(name, &request, expected);
        }
        let request = self.post();
        let short = request.clone().without_length().with("content-length", &(request.body.len() - 3).to_string());
        self.row("a length that is too short", &short, effect(400));
        let long = request.clone().without_length().with("content-length", &(request.body.len() + 3).to_string());
        self.raw("a length that is too long, and the end", long.bytes(), true, effect(400));
        self.raw("a whole request, and the end", self.post().bytes(), true, TAKEN);
        let huge = request.without_length().with("content-length", "4000000000");
        self.raw("a huge length, and the end", huge.bytes(), true, effect(413));
        self.collector(effect(400));
    }

    fn chunks(&mut self) {
        let chunked = |body: Vec<u8>| {
            let request = Request::post(TRACES, PROTOBUF, body).without_length();
            request.with("transfer-encoding", "chunked")
        };
        let in_chunks = |body: &[u8], size: usize, extension: &str, end: &str| {
            let chunk =
                |piece: &[u8]| [format!("{:x}{extension}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            [body.chunks(size).flat_map(chunk).collect::<Vec<_>>(), end.as_bytes().to_vec()].concat()
        };
        let body = in_chunks(&self.body(), 1000, "", "0\r\n\r\n");
        self.row("one chunk", &chunked(body), TAKEN);
        let body = in_chunks(&self.body(), 1, "", "0\r\n\r\n");
        self.row("many chunks", &chunked(body), TAKEN);
        let body = in_chunks(&self.body(), 9, ";a=b", "0\r\n\r\n");
        self.row("extensions of chunks", &chunked(body), TAKEN);
        let body = in_chunks(&self.body(), 1000, "", "0\r\nx-after: 1\r\n\r\n");
        self.row("trailers", &chunked(body), TAKEN);
        self.row("no chunk but the last", &chunked(b"0\r\n\r\n".to_vec()), EMPTY);
        let body = in_chunks(&self.body(), 1000, "", "zz\r\n");
        self.row("a chunk without a size", &chunked(body), effect(400));
        let body = in_chunks(&self.body(), 1000, "", "");
        self.raw("no last chunk, and the end", chunked(body).bytes(), true, effect(400));
        let body = in_chunks(&self.body(), 1000, "", "0\r\n\r\n");
        self.row("chunks and a length", &chunked(body.clone()).with("content-length", "5"), TAKEN);
        let other = |coding: &str| {
            Request::post(TRACES, PROTOBUF, body.clone()).without_length().with("transfer-encoding", coding)
        };
        self.row(
            "a chunk of a size that does not fit 64 bits",
            &chunked(b"fffffffffffffffff\r\n".to_vec()),
            effect(400),
        );
        self.row("a size with a sign", &chunked(b"+1\r\na\r\n0\r\n\r\n".to_vec()), effect(400));
        self.row("more bytes than the chunk's size", &chunked(b"1\r\nab\r\n0\r\n\r\n".to_vec()), effect(400));
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(40_000));
        self.row("an extension of 40 kB", &chunked(long.into_bytes()), effect(400));
        let body = in_chunks(&self.body(), 1000, "", &format!("0\r\nx: {}\r\n\r\n", "y".repeat(40_000)));
        self.row("trailers of 40 kB", &chunked(body), effect(400));
        self.row("chunks twice", &other("chunked, chunked"), effect(501));
        self.row(
            "chunks in HTTP/1.0",
            &chunked(b"0\r\n\r\n".to_vec()).line(&format!("POST {TRACES} HTTP/1.0")),
            effect(400),
        );
        self.collector(EMPTY);
        self.row("chunks of gzip", &other("gzip, chunked"), effect(501));
        self.row("a transfer encoding that nobody knows", &other("identity"), effect(400));
        self.collector(effect(501));
    }

    fn heads(&mut self) {
        let request = self.post().without("host");
        self.row("no host", &request, TAKEN);
        self.collector(effect(400));
        let request = self.post().line("POST /v1/traces HTTP/3.0");
        self.row("a version that nobody knows", &request, effect(400));
        self.collector(effect(505));
        for (name, line) in [
            ("a line without a colon", "no colon here"),
            ("a name with a space", "a b: c"),
            ("a name with a space at its end", "a : c"),
            ("a control character", "x-a: a\u{1}b"),
        ] {
            let text = String::from_utf8_lossy(&Request::post(TRACES, PROTOBUF, "").bytes()).into_owned();
            let text = text.replace("connection: close", &format!("{line}\r\nconnection: close"));
            self.raw(name, text.into_bytes(), false, effect(400));
        }
        let request = self.post().with("x-long", &"x".repeat(20_000));
        self.row("headers of 20 kB", &request, effect(431));
        self.collector(TAKEN);
        let request = (0..200).fold(self.post(), |request, n| request.with(&format!("x-{n}"), "a"));
        self.row("200 headers", &request, effect(431));
        self.collector(TAKEN);
        let request = self.post().line(&format!("POST /{} HTTP/1.1", "a".repeat(20_000)));
        self.row("a path of 20 kB", &request, effect(431));
        self.collector(effect(404));
        let request = self.post().line("CONNECT localhost:80 HTTP/1.1");
        self.row("CONNECT", &request, effect(404));
        let request = self.post().line("OPTIONS * HTTP/1.1");
        self.row("OPTIONS *", &request, effect(404));
        self.collector(EMPTY);
        let request = self.post().line("POST /v1/tra\u{1}ces HTTP/1.1");
        self.row("a control character in the path", &request, effect(400));
        let request = self.post().with("connection", "upgrade, http2-settings").with("upgrade", "h2c");
        self.row("an upgrade to h2c", &request.with("http2-settings", "AAMAAABkAAQAAP__"), TAKEN);
        let request = self.post().with("upgrade", "h2c");
        self.row("an upgrade", &request, TAKEN);
        let request = self.post().with("expect", "100-continue");
        self.row("Expect: 100-continue", &request, TAKEN);
        let request = self.post().with("expect", "a miracle");
        self.row("another expectation", &request, TAKEN);
        self.collector(effect(417));
        let bytes = [b"\r\n", &self.post().bytes()[..]].concat();
        self.raw("an empty line before the request", bytes, false, TAKEN);
        self.collector(effect(400));
        let text = self.post().bytes();
        let at = text.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&text[..at]).replace("\r\n", "\n");
        let bytes = [head.as_bytes(), b"\n\n", &text[at + 4..]].concat();
        self.raw("lines without CR", bytes, false, TAKEN);
        self.raw("garbage", b"\x01\x02\x03\x04\r\n\r\n".to_vec(), false, effect(400));
    }

    fn encodings(&mut self) {
        let post =
            |encoding: &str, body: Vec<u8>| Request::post(TRACES, PROTOBUF, body).with("content-encoding", encoding);
        self.row("gzip", &post("gzip", gzip(&self.body())), TAKEN);
        self.row("zstd", &post("zstd", zstd(&self.body())), TAKEN);
        self.row("deflate (zlib)", &post("deflate", zlib(&self.body())), TAKEN);
        self.row("zlib", &post("zlib", zlib(&self.body())), TAKEN);
        self.row("deflate (raw)", &post("deflate", deflate(&self.body())), TAKEN);
        self.collector(effect(400));
        self.snappy();
        self.row("an empty encoding", &post("", self.body()), TAKEN);
        self.row("identity", &post("identity", self.body()), TAKEN);
        self.collector(effect(400));
        self.row("gzip in capitals", &post("GZIP", gzip(&self.body())), TAKEN);
        self.collector(effect(400));
        self.row("x-gzip", &post("x-gzip", gzip(&self.body())), TAKEN);
        self.collector(effect(400));
        self.row("an encoding that nobody knows", &post("br", self.body()), effect(400));
        self.row("gzip twice", &post("gzip, gzip", gzip(&gzip(&self.body()))), effect(400));
        self.row("gzip that is none", &post("gzip", self.body()), effect(400));
        self.row("gzip that says it is zstd", &post("zstd", gzip(&self.body())), effect(400));
        self.row("gzip of nothing", &post("gzip", gzip(b"")), EMPTY);
        self.row("no bytes of gzip", &post("gzip", Vec::new()), effect(400));
        self.row("zstd of nothing", &post("zstd", zstd(b"")), EMPTY);
        self.row("no bytes of zstd", &post("zstd", Vec::new()), effect(400));
        self.collector(EMPTY);
        let mut torn = gzip(&self.body());
        torn.truncate(torn.len() - 9);
        self.row("half of gzip", &post("gzip", torn), effect(400));
        let mut torn = zstd(&self.body());
        torn.truncate(torn.len() - 3);
        self.row("half of zstd", &post("zstd", torn), effect(400));
        let mut wrong = gzip(&self.body());
        let at = wrong.len() - 8;
        wrong[at] ^= 1;
        self.row("a wrong checksum", &post("gzip", wrong), effect(400));
        let trailing = [gzip(&self.body()), b"garbage".to_vec()].concat();
        self.row("garbage behind gzip", &post("gzip", trailing), effect(400));
        let body = self.body();
        let (first, second) = body.split_at(10);
        self.row("two members of gzip", &post("gzip", [gzip(first), gzip(second)].concat()), TAKEN);
        let body = self.body();
        let (first, second) = body.split_at(10);
        self.row("two frames of zstd", &post("zstd", [zstd(first), zstd(second)].concat()), TAKEN);
        let trailing = [zstd(&self.body()), b"garbage".to_vec()].concat();
        self.row("garbage behind zstd", &post("zstd", trailing), effect(400));
        let thrice = gzip(&gzip(&gzip(&self.body())));
        self.row("gzip thrice that says it is once", &post("gzip", thrice), effect(400));
        let large = vec![0; 21 << 20];
        self.row("gzip of 21 MiB", &post("gzip", gzip(&large)), effect(413));
        self.collector(effect(400));
        self.row("zstd of 21 MiB", &post("zstd", zstd(&large)), effect(413));
        self.collector(effect(400));
    }

    fn snappy(&mut self) {
        let post =
            |encoding: &str, body: Vec<u8>| Request::post(TRACES, PROTOBUF, body).with("content-encoding", encoding);
        self.row("snappy in one block", &post("snappy", snappy_block(&self.body())), TAKEN);
        self.row("snappy in frames", &post("snappy", snappy_framed(&self.body())), TAKEN);
        self.row("x-snappy-framed", &post("x-snappy-framed", snappy_framed(&self.body())), TAKEN);
        self.row("x-snappy-framed that is a block", &post("x-snappy-framed", snappy_block(&self.body())), TAKEN);
        self.collector(effect(400));
        let mut torn = snappy_block(&self.body());
        torn.truncate(torn.len() - 3);
        self.row("half of snappy", &post("snappy", torn), effect(400));
        let mut wrong = snappy_framed(&self.body());
        wrong[14] ^= 1;
        self.row("a wrong checksum of snappy", &post("x-snappy-framed", wrong), effect(400));
        self.row("a length of snappy that lies", &post("snappy", vec![0xff, 0xff, 0xff, 0x7f, 0, 0x61]), effect(400));
        self.row("snappy that is none", &post("snappy", self.body()), effect(400));
        self.row("snappy of 21 MiB", &post("snappy", snappy_block(&vec![0; 21 << 20])), effect(413));
        self.collector(effect(400));
    }

    fn messages(&mut self) {
        let post = |body: Vec<u8>| Request::post(TRACES, PROTOBUF, body);
        let mut torn = self.body();
        torn.truncate(torn.len() - 1);
        self.row("half of a message", &post(torn), effect(400));
        self.row("a message that is none", &post(vec![0xff; 20]), effect(400));
        self.row("text", &post(b"{\"resourceSpans\":[]}".to_vec()), effect(400));
        let unknown = [self.body(), vec![0xfa, 0x3f, 1, 7]].concat();
        self.row("an unknown field", &post(unknown), TAKEN);
        self.row("a field with a wrong wire type", &post(vec![0x08, 1]), effect(400));
        self.row("an empty resource", &post(vec![0x0a, 0]), EMPTY);
        self.row("a body of 21 MiB", &post(vec![0; 21 << 20]), effect(413));
        self.collector(effect(400));
    }
}

fn table() -> Vec<Row> {
    let mut table = Table(Vec::new());
    table.types();
    table.methods();
    table.paths();
    table.lengths();
    table.chunks();
    table.heads();
    table.encodings();
    table.messages();
    table.json();
    table.0
}

/// Sends all rows and compares their effects with those that are `expected`. `has` returns whether a trace was delivered.
fn check(
    address: SocketAddr,
    expected: impl Fn(&Row) -> Effect,
    has: impl Fn(&[u8; 16]) -> Result<bool>,
) -> Result<()> {
    let rows = table();
    ensure!(rows.len() >= 80, "{} rows", rows.len());
    let mut wrong = Vec::new();
    let mut statuses = Vec::new();
    for row in &rows {
        let status = match wire::send(address, &row.bytes, row.is_torn) {
            Ok(answer) => answer.status,
            Err(error) => {
                wrong.push(format!("{}: {error:#}", row.name));
                0
            }
        };
        statuses.push(status);
    }
    // A Collector writes its file a moment later.
    if let Some(last) = rows.iter().rposition(|row| expected(row).is_delivered) {
        harness::until("the last span is delivered", || Ok(has(&trace(last))?.then_some(()))).ok();
    }
    for (n, (row, status)) in rows.iter().zip(statuses).enumerate() {
        let effect = Effect { status, is_delivered: has(&trace(n))? };
        if effect != expected(row) {
            wrong.push(format!("{}: {effect:?} instead of {:?}", row.name, expected(row)));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_requests_get_their_status_and_deliver_their_span_or_not() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig { http: Some(""), ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    let has = |trace: &[u8; 16]| {
        anyhow::Ok(fixture.backends.iter().any(|backend| backend.delivered().keys().any(|(id, _)| id == trace)))
    };
    tokio::task::block_in_place(|| check(address, |row| row.expected, has))?;
    fixture.serves().await
}

#[test]
fn a_collector_does_the_same_except_where_the_table_says_so() -> Result<()> {
    let Some(otelcol) = harness::peer("otelcol")? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (file, out) = (dir.path().join("collector.yaml"), dir.path().join("spans.json"));
    let (process, [http]) = harness::on_free_ports(|[http]| {
        let text = format!(
            "receivers: {{ otlp: {{ protocols: {{ http: {{ endpoint: {http} }} }} }} }}
exporters: {{ file: {{ path: {}, flush_interval: 10ms }} }}
service:
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines: {{ traces: {{ receivers: [otlp], exporters: [file] }} }}\n",
            out.display()
        );
        fs::write(&file, text)?;
        let process = Process::start("otelcol", Command::new(&otelcol).arg("--config").arg(&file))?;
        Ok((process, Ready::Listening(vec![http])))
    })?;
    let has = |trace: &[u8; 16]| {
        let hex: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
        anyhow::Ok(fs::read_to_string(&out).context("no file")?.contains(&hex))
    };
    check(http, |row| row.collector.unwrap_or(row.expected), has).with_context(|| process.log())
}
